"""The shape of the repository: who imports whom, what needs PyTorch alone, what never occurs."""
import ast
import subprocess
import sys

import pytest

import tiny

# What `python vit.py` prints, and the others; imported where a file is run, never where it is read.
EXAMPLES = ("support.tools.model_examples", "support.tools.row_examples")
EIGHT = ("vit", "llama", "lora", "projector", "data", "train", "eval", "chat")
TORCH_ALONE = ("vit", "llama", "lora")
PACKAGES = {"torch", "safetensors", "sentencepiece", "numpy", "PIL", "tqdm"}
# Each may import its own layer and those before it.
LAYERS = (
    {"support.common"},
    {"vit", "llama", "lora", "support.readers", "support.images", "support.checkpoints.files",
     "support.checkpoints.names", "support.inference.quantization",
     "support.inference.cpu_kernels", "support.inference.cuda_graphs"},
    {"data", "support.checkpoints.load", "support.inference.generation"},
    {"projector"},
    {"support.training", "support.metrics", "support.evaluation", "support.terminal",
     "support.tools", "support.building", "support.scenes", "support.explain",
     "support.serving"},
    {"train", "eval", "chat"},
)
FILES = sorted([f"{name}.py" for name in EIGHT] + [
    str(path.relative_to(tiny.ROOT)) for path in (tiny.ROOT / "support").rglob("*.py")])


def source(name):
    return (tiny.ROOT / name).read_text(encoding="utf-8")


def module(name):
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def layer(name):
    """The number of the layer that a module of ours is in."""
    [found] = [number for number, names in enumerate(LAYERS)
               if any(name == own or name.startswith(own + ".") for own in names)]
    return found


def imported(name):
    """(module, inside a function or a __main__ block?) of all that a file imports."""
    tree, top = ast.parse(source(name)), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
        if isinstance(node, ast.Import | ast.ImportFrom):
            late = node not in tree.body
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [
                f"{node.module}.{a.name}" for a in node.names]
            top |= {(full, late) for full in names}
    return top


def ours(full):
    """The module of ours that an imported name lies in, or none."""
    parts = full.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        path = name.replace(".", "/")
        if f"{path}.py" in FILES or f"{path}/__init__.py" in FILES:
            return name
    return None


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down_the_layers_and_scripts_never_import_each_other(name):
    own = module(name)
    for full, late in imported(name):
        other = ours(full)
        script_starts_its_tool = late and (other in EXAMPLES or own in ("data", "projector") and (
            other or "").startswith(("support.tools.", "support.building.")))
        if other and other != own and not script_starts_its_tool:
            assert layer(other) <= layer(own), f"{name} imports {other}"
            assert layer(own) < len(LAYERS) - 1 or layer(other) < layer(own), f"{name}, {other}"


@pytest.mark.parametrize("name", FILES)
def test_the_imports_have_no_cycle(name):
    seen, todo = set(), [module(name)]
    while todo:
        current = todo.pop()
        file = f"{current.replace('.', '/')}.py"
        file = file if file in FILES else f"{current.replace('.', '/')}/__init__.py"
        for full, late in imported(file):
            other = ours(full)
            if other and other != current and not late and other not in seen:
                assert other != module(name), f"{name} is imported by {current}, which it imports"
                seen.add(other)
                todo.append(other)


@pytest.mark.parametrize("name", TORCH_ALONE)
def test_a_model_file_needs_pytorch_and_the_standard_library_alone(name):
    example = f"support.tools.model_examples.show_{name}"
    roots = {full.split(".")[0] for full, late in imported(f"{name}.py")
             if (full, late) != (example, True)}
    assert roots - set(sys.stdlib_module_names) <= {"torch"}


def test_what_a_model_file_prints_when_it_is_run_needs_pytorch_and_the_model_files_alone():
    roots = {full.split(".")[0] for full, _ in imported("support/tools/model_examples.py")}
    assert roots - set(sys.stdlib_module_names) == {"torch", *TORCH_ALONE}


def test_the_model_files_can_be_imported_where_there_is_nothing_but_pytorch():
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {PACKAGES - {"torch", "numpy"} | {"support", "data"}}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import vit, llama, lora
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FILES)
def test_of_the_examples_only_the_miniature_world_is_imported(name):
    examples = {full.rsplit(".", 1)[0] for full, _ in imported(name) if full.startswith("examples")}
    assert examples <= {"examples.miniworld"}
    assert not any(full.startswith("tests") for full, _ in imported(name))


def test_the_eight_modules_are_the_only_python_files_at_the_top():
    assert {path.stem for path in tiny.ROOT.glob("*.py")} == set(EIGHT)


def calls(name):
    return [node for node in ast.walk(ast.parse(source(name))) if isinstance(node, ast.Call)]


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
