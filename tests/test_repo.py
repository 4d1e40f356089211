"""The shape of the repository: who imports whom, how long things are, what is never written."""
import ast

import pytest

import tiny

OURS = {"vit", "llama", "lora", "data", "projector", "train", "eval", "chat"}
LINES = {"vit": 220, "llama": 380, "lora": 180, "projector": 280, "data": 560, "train": 380,
         "eval": 420, "chat": 240}
MAY_IMPORT = {
    "vit": {"formats"}, "llama": {"formats"}, "lora": {"formats"}, "data": {"formats"},
    "projector": {"vit", "llama", "lora", "formats"},
    "train": {"projector", "data", "lora", "examples", "formats"},
    "eval": {"projector", "data", "examples", "formats"},
    "chat": {"projector", "data", "examples", "formats"},
}
SCRIPTS = ("train", "eval", "chat")
MODULES = [name for name in LINES if (tiny.ROOT / f"{name}.py").exists()]
FORMATS = sorted(str(path.relative_to(tiny.ROOT / "formats"))
                 for path in (tiny.ROOT / "formats").rglob("*.py"))


def source(name):
    return (tiny.ROOT / name).read_text(encoding="utf-8")


def imports(name):
    """The top-level packages a file imports, wherever in it, and the modules in full."""
    whole = set()
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.Import):
            whole |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            whole.add(node.module)
    return {module.split(".")[0] for module in whole}, whole


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downwards(name):
    ours = imports(f"{name}.py")[0] & (OURS | {"formats", "examples", "tests"})
    assert ours <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", MODULES)
def test_of_the_examples_only_the_miniature_world_is_imported(name):
    examples = {module for module in imports(f"{name}.py")[1] if module.startswith("examples")}
    assert examples <= {"examples.miniworld"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_short_and_imports_nothing_of_ours_but_formats(name):
    tensors = set() if name.startswith(("released/", "training/")) else {"torch"}
    assert not imports(f"formats/{name}")[0] & (OURS | {"examples"} | tensors)
    assert len(source(f"formats/{name}").splitlines()) <= 60


def test_the_eight_modules_are_the_only_python_files_at_the_top():
    assert {path.stem for path in tiny.ROOT.glob("*.py")} <= OURS


@pytest.mark.parametrize("name", MODULES)
def test_a_module_keeps_its_budget_of_lines(name):
    assert len(source(f"{name}.py").splitlines()) <= LINES[name]


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_longer_than_45_lines_and_no_main_loop_than_80(name):
    for node in ast.walk(ast.parse(source(f"{name}.py"))):
        if isinstance(node, ast.FunctionDef):
            loop = name in SCRIPTS and node.name in ("train", "main")
            length = node.end_lineno - node.lineno + 1
            assert length <= (80 if loop else 45), f"{name}.{node.name}: {length} lines"


def calls(name):
    return [node for node in ast.walk(ast.parse(source(name))) if isinstance(node, ast.Call)]


FILES = [f"{name}.py" for name in MODULES] + [f"formats/{name}" for name in FORMATS]


@pytest.mark.parametrize("name", FILES)
def test_weights_are_never_loaded_halfway_or_unpickled(name):
    for call in calls(name):
        called, keywords = ast.unparse(call.func), {k.arg: ast.unparse(k.value)
                                                    for k in call.keywords}
        if called == "torch.load":
            assert keywords.get("weights_only") == "True"
        if called.endswith("load_state_dict"):
            assert keywords.get("strict", "True") == "True"
        assert called.split(".")[0] not in ("pickle", "exec", "eval")
