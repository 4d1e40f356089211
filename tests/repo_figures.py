"""The shape of the repository in figures, by a walk over its syntax trees.

    python tests/repo_figures.py [ROOT]

Support files and their lines; the files of the project that each of the eight pulls in; what a
reader meets in train.py before the first forward pass; the arguments of Attention.forward and the
line of the first matrix product in llama.py.
"""
import ast
import re
import sys
from pathlib import Path

EIGHT = ("vit", "llama", "lora", "projector", "data", "train", "eval", "chat")
PRODUCT = re.compile(r"_proj\(|scaled_dot_product_attention\(|F\.linear\(| @ ")


def file_of(root: Path, module: str) -> Path | None:
    stem = root / module.replace(".", "/")
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)


def project_imports(root: Path, file: Path, late: bool = True) -> dict[str, Path]:
    """{name it is bound to: file of the project}; late: in functions and __main__ blocks too."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            pairs = [(a.asname or a.name, (a.name,)) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            pairs = [(a.asname or a.name, (f"{node.module}.{a.name}", node.module))
                     for a in node.names]
        else:
            continue
        for name, modules in pairs:
            target = next(filter(None, (file_of(root, module) for module in modules)), None)
            if target:
                found[name] = target
    return found


def pulled_in(root: Path, file: Path) -> set[Path]:
    """What importing a file runs beside it."""
    found, todo = set(), [file]
    while todo:
        for target in project_imports(root, todo.pop(), late=False).values():
            if target not in found:
                found.add(target)
                todo.append(target)
    return found - {file}


def first_forward(root: Path) -> tuple[int, int]:
    """-> how many names of the project train.py brings in before its first forward pass, and from
    how many files."""
    names = project_imports(root, root / "train.py")
    text = (root / "train.py").read_text(encoding="utf-8")
    before = text[:text.index("model(**")]
    used = {name for name in names if len(re.findall(rf"\b{name}\b", before)) > 1}
    return len(used), len({names[name] for name in used})


def attention_arguments(root: Path) -> list[str]:
    for node in ast.walk(ast.parse((root / "llama.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == "Attention":
            [forward] = [f for f in node.body if getattr(f, "name", "") == "forward"]
            return [a.arg for a in forward.args.args if a.arg != "self"]
    raise LookupError("llama.py has no Attention")


def first_product(root: Path) -> int:
    lines = (root / "llama.py").read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1)
                if PRODUCT.search(line.split("#")[0]) and "    h = h +" not in line)


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
    support = [p for folder in ("support", "formats") for p in (root / folder).rglob("*.py")]
    lines = [len(p.read_text(encoding="utf-8").splitlines()) for p in support]
    print(f"support: {len(support)} files, {sum(lines):,} lines, "
          f"{min(lines)} to {max(lines)} a file")
    for name in EIGHT:
        file = root / f"{name}.py"
        print(f"{name}.py: {len(file.read_text(encoding='utf-8').splitlines())} lines, pulls in "
              f"{len(pulled_in(root, file))} files")
    print("train.py before its first forward pass: {} names of the project from {} files".format(
        *first_forward(root)))
    arguments = attention_arguments(root)
    print(f"Attention.forward: {len(arguments)} arguments ({', '.join(arguments)})")
    print(f"llama.py: first matrix product at line {first_product(root)}")


if __name__ == "__main__":
    main()
