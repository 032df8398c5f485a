"""Who may import whom, and how large things may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _read(folder: str) -> dict[str, Path]:
    """Modules below a folder that holds a package, by dotted name."""
    files = sorted((ROOT / folder).rglob("*.py"))
    relative = {path: path.relative_to((ROOT / folder).parent).with_suffix("") for path in files}
    return {".".join(p for p in name.parts if p != "__init__"): path for path, name in relative.items()}


GUARDLIT, CALLBACKS = _read("guardlit"), _read("callbacks/guardlit_callbacks")
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in {**GUARDLIT, **CALLBACKS}.items()}

MATH = ("sde", "ratios", "weights", "bounds", "surrogate", "objective", "gate", "kl", "advantage", "schedule")
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "types"),
    MATH,
    ("files", "assets"),
    ("config", "processes", "devices"),
    ("policies", "rewards"),
    ("rounds", "checkpoints"),
    ("data",),
    ("training",),
    ("gold", "planning", "ablation", "serving", "recipes", "tiny_world"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""The rooms, and the modules at the top, lowest first: each may import what stands in a lower row."""
NEIGHBORS = {
    *(("surrogate", part) for part in ("ratios", "weights", "bounds")),
    *(("kl", part) for part in ("ratios", "surrogate", "gate")),
    ("objective", "surrogate"),
    ("schedule", "sde"),
    ("schedule", "objective"),
}
"""(importer, imported) of one row; the math modules are one room in all but name."""

CALLBACK_LAYERS: tuple[tuple[str, ...], ...] = (
    ("composite", "tools"),
    ("distributed", "frontier"),
    ("figures",),
    ("bases", "report"),
    ("callbacks",),
)
"""The same for guardlit_callbacks; `callbacks` are the files at its top."""

TOP_LEVEL = {"torchmetrics", "torch", "lightning", "jsonargparse", "numpy", "yaml", "guardlit", "guardlit_callbacks"}
MODEL_NAMES = re.compile(r"sd_?3|sdxl|stable_?diffusion|flux|qwen|wan_?2|pixart|sana", re.IGNORECASE)
NAMES_MODELS = ("guardlit.policies", "guardlit.tiny_world")  # the second builds the bundled pipeline folder
PUBLIC_API = "guardlit"  # its `__init__` names classes of every room, and imports one when it is asked for

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_FILE, MAX_FUNCTION, MAX_REPEATED = 300, 60, 9  # lines
MAX_FOLDER = 18  # modules


# imports ------------------------------------------------------------------------------------------------------------


def imports(module: str, *, inside_functions: bool = True) -> set[str]:
    """Dotted names that a module imports, those for type checkers too: `from a import b` gives a and a.b."""
    found: set[str] = set()
    todo: list[ast.AST] = [TREES[module]]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}:{node.lineno}: imports are absolute here"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif inside_functions or not (isinstance(node, FUNCTIONS) or _only_for_types(node)):
            todo += ast.iter_child_nodes(node)
    return found


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def own(names: set[str]) -> set[str]:
    """The modules of guardlit and of its callbacks among some dotted names."""
    return names & TREES.keys()


def excess(modules: Iterable[str], found: Callable[[str], set[str]], allowed: set[str]) -> dict[str, set[str]]:
    """For each module, what `found` says of it beyond what is allowed."""
    return {module: extra for module in modules if (extra := found(module) - allowed)}


# rooms --------------------------------------------------------------------------------------------------------------


def room_of(module: str) -> str:
    """Where a module stands: its folder below the package or, at the top, its own name."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    at_the_top = package == "guardlit_callbacks" and not any(room in row for row in CALLBACK_LAYERS)
    return "callbacks" if at_the_top else room


def level(room: str, layers: tuple[tuple[str, ...], ...]) -> int:
    return next(i for i, row in enumerate(layers) if room in row)


def upward(modules: Iterable[str], layers: tuple[tuple[str, ...], ...]) -> list[str]:
    """Every import that leads to a higher row, or to another room of the same row."""
    found = []
    for module in modules:
        for other in sorted(own(imports(module)) - {PUBLIC_API, "guardlit_callbacks"}):
            if other.partition(".")[0] != module.partition(".")[0]:
                continue
            here, there = room_of(module), room_of(other)
            if here == there or (here, there) in NEIGHBORS:
                continue
            if level(there, layers) >= level(here, layers):
                found.append(f"{module} -> {other}")
    return found


def test_every_module_stands_in_a_room_that_is_known():
    known = {room for row in LAYERS for room in row}
    assert {room_of(module) for module in GUARDLIT if module != PUBLIC_API} - known == set()


def test_imports_lead_downward():
    assert upward(GUARDLIT.keys() - {PUBLIC_API}, LAYERS) == []


def test_imports_of_the_callbacks_lead_downward():
    assert upward(CALLBACKS.keys() - {"guardlit_callbacks"}, CALLBACK_LAYERS) == []


def test_no_import_comes_back_in_a_circle():
    graph = {module: own(imports(module)) - {PUBLIC_API, "guardlit_callbacks", module} for module in TREES}
    assert [module for module in graph if module in _reachable(graph, module)] == []


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = graph[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def test_every_room_says_what_it_is_for_and_whom_it_imports():
    rooms = [m for m, path in {**GUARDLIT, **CALLBACKS}.items() if path.name == "__init__.py" and "." in m]
    assert len(rooms) > 20
    assert [room for room in rooms if "mports " not in (ast.get_docstring(TREES[room]) or "")] == []


def test_no_folder_is_crowded():
    folders = Counter(path.parent.relative_to(ROOT).as_posix() for path in (GUARDLIT | CALLBACKS).values())
    assert {folder: count for folder, count in folders.items() if count > MAX_FOLDER} == {}


# libraries ----------------------------------------------------------------------------------------------------------


def test_the_math_knows_torch_and_nothing_else():
    modules = {f"guardlit.{name}" for name in MATH} & GUARDLIT.keys()
    assert len(modules) >= 5
    assert excess(modules, lambda m: packages(imports(m)), {"torch", "numpy", "guardlit"}) == {}


def test_callbacks_never_import_guardlit():
    forbidden = {"guardlit", "diffusers", "transformers", "peft"}
    assert excess(CALLBACKS, lambda m: packages(imports(m)) & forbidden, set()) == {}


def test_guardlit_uses_what_the_callbacks_make_public():
    """Of another distribution: no name, and no module, that begins with an underscore."""
    private = re.compile(r"guardlit_callbacks(\.\w+)*\._\w+")
    assert excess(GUARDLIT, lambda m: {name for name in imports(m) if private.fullmatch(name)}, set()) == {}


def test_private_names_of_lightning_stand_in_one_file():
    private = re.compile(r"\b(trainer|strategy|launcher|\w*_?loop|\w*connector)\._[a-z]\w*")
    elsewhere = GUARDLIT.keys() - {"guardlit.processes.lightning_internals"}
    assert excess(elsewhere, lambda m: {hit[0] for hit in private.finditer(ast.unparse(TREES[m]))}, set()) == {}


def test_heavy_packages_wait_until_they_are_needed():
    assert excess(GUARDLIT, lambda m: packages(imports(m, inside_functions=False)), TOP_LEVEL) == {}


def test_only_policies_know_diffusers_and_peft():
    others = {module for module in GUARDLIT if not module.startswith(NAMES_MODELS)}
    assert excess(others, lambda m: packages(imports(m)) & {"diffusers", "peft"}, set()) == {}


def test_only_policies_name_a_model():
    others = {module for module in GUARDLIT if not module.startswith(NAMES_MODELS)} - {PUBLIC_API}
    assert excess(others, lambda m: {w for w in words(TREES[m]) if MODEL_NAMES.search(w)}, set()) == {}


def words(module: ast.Module) -> Iterator[str]:
    """Identifiers and string constants; not comments and docstrings, which may name what they like."""
    prose = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        for field in ("id", "attr", "name", "arg", "module"):
            if isinstance(word := getattr(node, field, None), str):
                yield word
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def test_the_module_never_asks_what_it_was_given():
    """No branch on the class or the name of a policy, a reward, a sampler or an objective."""
    asks = re.compile(r"(isinstance|hasattr|type)\(|__class__|__name__|\.name\b")
    given = re.compile(r"\b(policy|reward|sde|objective)\b")
    branches = [n for n in ast.walk(TREES["guardlit.training.module"]) if isinstance(n, ast.If | ast.IfExp | ast.While)]
    conditions = [ast.unparse(node.test) for node in branches]
    assert len(conditions) > 5
    assert [text for text in conditions if asks.search(text) and given.search(text)] == []


def modules_after(statement: str) -> set[str]:
    probe = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_guardlit_costs_nothing():
    heavy = {"torch", "lightning", "diffusers", "transformers", "numpy"}
    assert packages(modules_after("import guardlit")) & heavy == set()


def test_the_command_line_loads_no_model_library():
    # torchmetrics looks at transformers' list of models, which in older versions loads more
    loaded = modules_after("import guardlit.commands.lightning_cli") - modules_after("import torchmetrics")
    assert "lightning" in packages(loaded)
    assert packages(loaded) & {"diffusers", "peft", "accelerate", "datasets", "sklearn"} == set()
    assert [n for n in loaded if re.match(r"transformers\.models\.(?!auto)\w+\.modeling", n)] == []


@pytest.mark.parametrize("package", ["guardlit.policies", "guardlit.rewards"])
def test_what_yaml_names_by_short_name_loads_no_model_library(package: str):
    assert packages(modules_after(f"import {package}")) & {"diffusers", "peft", "open_clip", "onnxruntime"} == set()


# how large things may grow ------------------------------------------------------------------------------------------


def test_files_stay_short():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in (GUARDLIT | CALLBACKS).items()}
    assert {name: count for name, count in lines.items() if count > MAX_FILE} == {}


def test_functions_stay_short():
    functions = [(m, n) for m in TREES for n in ast.walk(TREES[m]) if isinstance(n, FUNCTIONS)]
    lengths = {f"{m}.{n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for m, n in functions}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION} == {}


def test_what_is_public_is_documented():
    assert [name for module, tree in TREES.items() for name in undocumented(tree, module)] == []


def undocumented(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[str]:
    """Public modules, classes and functions without a docstring; what stands inside a function is private."""
    if not ast.get_docstring(node):
        yield name
    for child in [] if isinstance(node, FUNCTIONS) else node.body:
        if isinstance(child, (ast.ClassDef, *FUNCTIONS)) and not child.name.startswith("_"):
            yield from undocumented(child, f"{name}.{child.name}")


def test_nothing_is_written_twice():
    """No ten lines of code stand in two files; imports, docstrings, comments and layout aside."""
    places = defaultdict(set)
    for module in TREES:
        lines = code_lines(GUARDLIT.get(module) or CALLBACKS[module])
        for start in range(len(lines) - MAX_REPEATED):
            places["\n".join(lines[start : start + MAX_REPEATED + 1])].add(module)
    assert len(places) > 1000
    assert {block: modules for block, modules in places.items() if len(modules) > 1} == {}


def code_lines(path: Path) -> list[str]:
    """A file's code in one spelling, without imports and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [s for s in node.body if not _is_prose_or_import(s)] or [ast.Pass()]
    return [line.strip() for line in ast.unparse(tree).splitlines() if line.strip()]


def _is_prose_or_import(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Import | ast.ImportFrom)
