"""Who may import whom, and how large things may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
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

BASICS = {"guardlit", "guardlit.types", "guardlit.errors"}
MATHS = {"guardlit.sde", "guardlit.objective", "guardlit.kl", "guardlit.advantage"}
INTERFACES = {"guardlit.policies.base", "guardlit.rewards.base"}
"""Abstract classes that know types and torch: what stands below policies and rewards may name these."""
LAYERS = (
    {"guardlit.types"},
    MATHS,
    {"guardlit.rounds.rollout"},
    {"guardlit.training.module"},
    {"guardlit.commands.lightning_cli", "guardlit.cli"},
)
TOP_LEVEL = {"torchmetrics", "torch", "lightning", "jsonargparse", "numpy", "yaml", "guardlit", "guardlit_callbacks"}
MODEL_NAMES = re.compile(r"sd_?3|sdxl|stable_?diffusion|flux|qwen|wan_?2|pixart|sana", re.IGNORECASE)
KNOW_MODELS = (
    "guardlit.policies",
    "guardlit.tiny_world.build",
)  # the second makes the bundled folder, and trains nothing

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_FILE, MAX_FUNCTION, MAX_REPEATED = 300, 60, 9  # lines


# who may import whom ------------------------------------------------------------------------------------------------


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(module: str, *, inside_functions: bool = True) -> set[str]:
    """Dotted names that a module imports at run time: `from a import b` gives a and a.b."""
    found: set[str] = set()
    todo: list[ast.AST] = [TREES[module]]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}:{node.lineno}: imports are absolute here"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif not only_for_types(node) and (inside_functions or not isinstance(node, FUNCTIONS)):
            todo += ast.iter_child_nodes(node)
    return found


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def own(names: set[str]) -> set[str]:
    return names & GUARDLIT.keys()


def reachable(module: str) -> set[str]:
    """The modules of guardlit that importing this one executes, packages' `__init__` aside."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        new = own(imports(todo.pop(), inside_functions=False)) - seen
        seen |= new
        todo += new
    return seen


def excess(modules: Iterator[str] | set[str], found, allowed: set[str]) -> dict[str, set[str]]:
    """For each module, what `found` says of it beyond what is allowed."""
    return {module: extra for module in modules if (extra := found(module) - allowed)}


def test_the_maths_know_torch_and_nothing_else():
    assert excess(MATHS, lambda m: packages(imports(m)), {"torch", "numpy", "guardlit"}) == {}
    assert excess(MATHS, lambda m: own(imports(m)), BASICS | MATHS) == {}


def test_types_and_errors_know_nothing_of_guardlit():
    assert excess({"guardlit.types", "guardlit.errors"}, lambda m: own(imports(m)), set()) == {}


def test_a_layer_never_reaches_one_above_it():
    for level, layer in enumerate(LAYERS):
        above = set().union(*LAYERS[level + 1 :])
        assert excess(layer, lambda m, above=above: reachable(m) & above, set()) == {}


def test_no_module_imports_itself_in_a_circle():
    assert [module for module in GUARDLIT if module in reachable(module)] == []


@pytest.mark.parametrize("package", ["guardlit.policies", "guardlit.rewards"])
def test_policies_and_rewards_know_types_and_their_siblings(package: str):
    siblings = {module for module in GUARDLIT if module.startswith(package)}
    assert excess(siblings, lambda m: own(imports(m)), BASICS | siblings | {"guardlit.assets"}) == {}


def test_the_rollout_and_the_module_meet_policies_and_rewards_by_their_interfaces():
    concrete = {m for m in GUARDLIT if m.startswith(("guardlit.policies.", "guardlit.rewards."))} - INTERFACES
    assert excess({"guardlit.rounds.rollout", "guardlit.training.module"}, lambda m: imports(m) & concrete, set()) == {}


def test_callbacks_never_import_guardlit():
    forbidden = {"guardlit", "diffusers", "transformers", "peft"}
    everywhere = {
        module: {name for node in ast.walk(TREES[module]) for name in _named(node)} for module in CALLBACKS
    }  # in blocks for type checkers too
    assert excess(CALLBACKS.keys(), lambda m: packages(everywhere[m]) & forbidden, set()) == {}


def _named(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_heavy_packages_wait_until_they_are_needed():
    assert excess(GUARDLIT.keys(), lambda m: packages(imports(m, inside_functions=False)), TOP_LEVEL) == {}


def test_only_policies_know_diffusers_and_peft():
    others = {module for module in GUARDLIT if not module.startswith(KNOW_MODELS)}
    assert excess(others, lambda m: packages(imports(m)) & {"diffusers", "peft"}, set()) == {}


def test_only_policies_name_a_model():
    others = {module for module in GUARDLIT if not module.startswith(KNOW_MODELS)}
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
    assert packages(modules_after("import guardlit")) & {"torch", "lightning", "diffusers", "transformers"} == set()


def test_the_command_line_loads_no_model_library():
    loaded = modules_after("import guardlit.commands.lightning_cli")
    assert "lightning" in packages(loaded)
    assert packages(loaded) & {"diffusers", "peft", "accelerate", "datasets", "sklearn"} == set()
    # torchmetrics looks at transformers' list of models, which loads none
    assert [n for n in loaded if re.match(r"transformers\.models\.(?!auto)\w+\.modeling", n)] == []


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
