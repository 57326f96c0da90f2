"""Pages that are made while the site is built: the README as its first page, and references that the sources
write themselves. A hook of mkdocs (mkdocs.yml names it); nothing here imports torch."""

import ast
import inspect
import re
import sys
from pathlib import Path

import docstring_parser
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SHOWN = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
SHOWN |= {"security.md": "SECURITY.md"}
SHOW_SOURCE = ("    options:", "      show_source: true")  # fields are explained in comments
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>|mermaid")


def on_files(files, config):
    """Add the pages that are not files of docs/."""
    made = {page: at_home((ROOT / source).read_text("utf-8")) for page, source in SHOWN.items()}
    made |= {"commands.md": commands_page(), "ops.md": ops_page()}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_post_build(config):
    """Refuse a site whose pages load anything from elsewhere."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        if found := LOADED.search(page.read_text("utf-8")):
            raise PluginError(f"{page.name} loads something from elsewhere: {found[0]}")
    for sheet in sorted(Path(config.site_dir).rglob("*.css")):
        if re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text("utf-8")):
            raise PluginError(f"{sheet.name} loads something from elsewhere")


def at_home(text: str) -> str:
    """The text of a page of the repository's root, with its links as they are from within docs/."""
    for page, source in SHOWN.items():
        text = text.replace(f"]({source})", f"]({page})")
    return text.replace("](docs/", "](")


def commands_page() -> str:
    """Every command and option, from the functions that are the command line."""
    from raymarch.apps.cli import COMMANDS

    parts = ["# Command line\n\n`raymarch COMMAND --help` prints the same.\n"]
    return "\n".join([*parts, *(command(name, body) for name, body in COMMANDS.items())])


def command(name: str, body) -> str:
    told = docstring_parser.parse(inspect.getdoc(body) or "", docstring_parser.DocstringStyle.GOOGLE)
    about = {p.arg_name: " ".join((p.description or "").split()) for p in told.params}
    words, rows = ["raymarch", name], []
    for at in inspect.signature(body).parameters.values():
        kind = str(at.annotation)
        if kind.startswith("Positional"):
            words.append(at.name.upper() + (" ..." if "tuple" in kind else ""))
            rows.append(f"| `{words[-1]}` | | {about.get(at.name, '')} |")
            continue
        flag = "--" + at.name.replace("_", "-")
        flag += ", --no-" + at.name.replace("_", "-") if kind == "bool" and at.default else ""
        default = "" if at.default in (None, False, True, ()) else f"`{at.default}`"
        rows.append(f"| `{flag}` | {default} | {about.get(at.name, '')} |")
    table = ["| | default | |", "|---|---|---|", *rows] if rows else []
    what = " ".join(filter(None, (told.short_description, told.long_description)))
    return "\n".join([f"## {name}\n", f"`{' '.join(words)}`\n", f"{what}\n", *table, ""])


def imports_ops(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module != "raymarch.ops._op"


def place(name: str, order: list[str]) -> int:
    """Where an op's first native part stands in ops.def; last if it has none of its name."""
    return next((i for i, native in enumerate(order) if native.startswith(name)), len(order))


def ops_page() -> str:
    """Every public op, in the order a ray meets them, then what the native core declares."""
    lines = [
        "# Ops",
        "",
        "`from raymarch import ops`: differentiable torch ops on the CPU and on CUDA. They work under",
        "`torch.compile(fullgraph=True)` and in CUDA graphs. C cameras, R rays, S samples, P points.",
        "Formulas lie in `csrc/math/`, their sources are named there.",
        "",
    ]
    from bench.stubs import read_ops

    order = [op.name for op in read_ops()]
    tree = ast.parse((ROOT / "raymarch" / "ops" / "__init__.py").read_text("utf-8"))
    homes = {str(node.module): [a.name for a in node.names] for node in tree.body if imports_ops(node)}
    for module in sorted(homes, key=lambda m: min(place(name, order) for name in homes[m])):
        lines += [f"## {module.rpartition('.')[2]}", ""]
        for name in homes[module]:
            lines += [f"::: {module}.{name}", *(SHOW_SOURCE if name[0].isupper() else ()), ""]
    lines += [
        "## What the core declares",
        "",
        "`csrc/ops.def`. Each takes arrays of any framework, by DLPack.",
        "",
    ]
    lines += ["| `raymarch._C` | arguments |", "|---|---|"]
    for op in read_ops():
        lines.append(f"| `{op.name}` | {', '.join(argument.name for argument in op.arguments)} |")
    return "\n".join([*lines, ""])
