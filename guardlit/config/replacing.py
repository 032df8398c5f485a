"""A class that replaces another one starts from its own defaults, and a list replaces a list.

jsonargparse keeps of the earlier class every option that the later one would accept as well: another scorer would load
the earlier one's weights, and another optimizer would take AdamW's defaults, which are in no file. Lists of equal
length it merges item by item.
"""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace, _typehints

from guardlit.config.nearest import import_class

SUB_DEFAULTS: Any = _typehints.sub_defaults
"""True while jsonargparse fills in defaults beneath a value that is there already."""


def drop_options(_: Any, earlier: Any, later: Any) -> None:
    """Empty the options of an earlier class in place if the later one is another; takes jsonargparse's place."""
    if not earlier or "init_args" not in earlier or _same(earlier["class_path"], later["class_path"]):
        return
    options = earlier["init_args"]
    for name in list(vars(options) if isinstance(options, Namespace) else options):
        options.pop(name)


def _same(one: str | None, other: str | None) -> bool:
    if one == other or one is None or other is None:  # of a data class, whose name may be left out
        return True
    return import_class(one) is not None and import_class(one) is import_class(other)


def adapt(value: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
    """As jsonargparse's, but a list that is given as one has nothing of the list before it."""
    if isinstance(value, list) and not kwargs.get("append") and not SUB_DEFAULTS.get():
        kwargs["prev_val"] = None
    return _adapt(value, typehint, *args, **kwargs)


_adapt: Any = _typehints.adapt_typehints
# it has no setting for either; `tests/config/test_replacing.py` fails if a later version looks elsewhere
setattr(_typehints, "discard_init_args_on_class_path_change", drop_options)  # noqa: B010 - types differ
setattr(_typehints, "adapt_typehints", adapt)  # noqa: B010
