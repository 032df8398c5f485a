"""Malformed configurations: as YAML, by their keys, by their values, from files, options and the environment."""

from __future__ import annotations

from malformed.case import FIT, Case, World, file, line

DEEP = 700


def _yaml(what: str, text: str | bytes, place: str, found: str, right: str) -> Case:
    return file(what, "bad.yaml", text, [*FIT, "--config"], place, found, right)


def _laughs() -> str:
    """Nine times nine times ... nine values, by aliases."""
    rows = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))]
    return "\n".join(rows) + "\n"


def _base(what: str, text: str, found: str, right: str, place: str = "bad.yaml:1: base") -> Case:
    return _yaml(what, text, place, found, right)


def _circle(world: World) -> list[str]:
    world.write("a.yaml", "base: b.yaml\n")
    world.write("b.yaml", "base: a.yaml\n")
    return ["fit", "--config", "a.yaml"]


def _option(what: str, option: str, found: str, right: str, place: str | None = None) -> Case:
    name, _, _ = option.partition("=")
    return line(what, [*FIT, f"--{option}"], place or f"--{name}", found, right)


def _variable(name: str, value: str, found: str, right: str) -> Case:
    name = f"GUARDLIT_{name}"
    return line(f"{name}={value}", FIT, f"environment variable {name}", found, right, **{name: value})


SECTIONS = "expected the sections data:, model:, trainer:"
SYNTAX = [
    _yaml("unclosed bracket", "data: {micro_batch: [1\n", "bad.yaml:2", "got '<stream end>'", "expected ',' or ']'"),
    _yaml("tab", "data:\n\tmicro_batch: 1\n", "bad.yaml:2", "character '\\t'", "not valid YAML"),
    _yaml("undefined alias", "data: *x\n", "bad.yaml:1", "undefined alias 'x'", "not valid YAML"),
    _yaml("two documents", "data: {}\n---\ndata: {}\n", "bad.yaml:2", "another document", "expected a single document"),
    _yaml("empty file", "", "bad.yaml", "found nothing", SECTIONS),
    _yaml("only a comment", "# x\n", "bad.yaml", "found nothing", SECTIONS),
    _yaml("list on top", "- a\n", "bad.yaml", "found a list", SECTIONS),
    _yaml("text on top", "hello\n", "bad.yaml", "found 'hello'", SECTIONS),
    _yaml("number on top", "12\n", "bad.yaml", "found 12", SECTIONS),
    _yaml("binary file", b"\x89PNG\r\n\x1a\n\0\0", "bad.yaml:1", "byte 0x89", "save the file as UTF-8"),
    _yaml("Latin-1", "data:\n  train: é.txt\n".encode("latin1"), "bad.yaml:2", "byte 0xe9", "save the file as UTF-8"),
    _yaml("UTF-16", "data: {}\n".encode("utf-16"), "bad.yaml:1", "byte 0xff", "save the file as UTF-8"),
    _yaml("NUL", b"data:\n  train: a\0\n", "bad.yaml:2", "character U+0000", "remove it"),
    _yaml("deep", "data: " + "[" * DEEP + "]" * DEEP, "bad.yaml", "hundreds of levels deep", "not valid YAML"),
    _yaml("alias of itself", "data: &a\n  x: *a\n", "bad.yaml:1", "what it is a part of", "write the value out"),
    _yaml("billion laughs", _laughs(), "bad.yaml:1", "its aliases stand for", "100000 that are read"),
    _yaml("integer of 5000 digits", f"data: {{micro_batch: {'9' * 5000}}}\n", "bad.yaml:1", "5000 digits", "setting"),
    _yaml("list as key", "? [a, b]\n: c\n", "bad.yaml:1", "found a list", "a key must be text"),
    _yaml("mapping as key", "data: {? {a: b} : c}\n", "bad.yaml:1", "found a mapping", "a key must be text"),
    _yaml("null as key", "data: {null: c}\n", "bad.yaml:1", "found null", "a key must be text"),
    _yaml("number as key", "data: {3: c}\n", "bad.yaml:1", "found 3", "a key must be text"),
    _yaml("truth as key", "on: c\n", "bad.yaml:1", "found on", "a key must be text"),
    _yaml("empty key", "data: {'': c}\n", "bad.yaml:1", "an empty key", "write the name of a setting"),
    _yaml("key with a space", "data: {micro batch: 3}\n", "bad.yaml:1", "key 'micro batch'", "have no spaces"),
    _yaml("key twice", "data:\n  val: a\n  val: b\n", "bad.yaml:3", "'val' is given twice", "first on line 2"),
    _yaml(
        "key twice, deep down",
        "model:\n  sde: {class_path: FlowSDE, init_args: {noise_level: 1, noise_level: 2}}\n",
        "bad.yaml:2",
        "'noise_level' is given twice",
        "first on line 2",
    ),
    _yaml("merge of a number", "data: {<<: 3}\n", "bad.yaml:1", "found 3", "expected a mapping to merge"),
    _yaml("tag of ours", "data: {micro_batch: !foo 3}\n", "bad.yaml:1", "the tag !foo", "write plain text"),
    _yaml("set", "data: !!set {a, b}\n", "bad.yaml:1", "2002:set", "write plain text"),
    _yaml("binary value", "data: {train: !!binary abc}\n", "bad.yaml:1", "2002:binary", "write plain text"),
    Case(
        "Python object",
        lambda w: [
            *FIT,
            "--config",
            w.write("bad.yaml", f"data: {{train: !!python/object/apply:os.mkdir [{w.marker}]}}\n"),
        ],
        "bad.yaml:1",
        "python/object/apply:os.mkdir",
        "write plain text",
    ),
]
KEYS = [
    _yaml("unknown section", "modle: {reward: x}\n", "bad.yaml:1: modle.reward", "unknown key", "did you mean model."),
    _yaml("unknown key of data", "data: {micro_bach: 1}\n", "bad.yaml:1: data.micro_bach", "unknown key", "_batch"),
    _yaml("unknown key of trainer", "trainer: {max_epoch: 1}\n", "trainer.max_epoch", "unknown key", "max_epochs?"),
    _yaml("unknown key of rollout", "model:\n  rollout: {sde: 3}\n", "model.rollout.sde", "unknown key", "?"),
    _yaml(
        "unknown parameter of a class",
        "model:\n  policy:\n    init_args:\n      resolutoin: 3\n",
        "bad.yaml:4: model.policy",
        "no option 'resolutoin'",
        "did you mean resolution?",
    ),
    _yaml(
        "unknown key of a class in a class",
        "model:\n  policy:\n    init_args:\n      lora: {rnk: 3}\n",
        "bad.yaml:4: model.policy",
        "LoRA has no option 'rnk'",
        "did you mean rank?",
    ),
    _yaml("misspelt class", "model: {sde: FlowSD}\n", "bad.yaml:1: model.sde", "'FlowSD' is no known", "FlowSDE?"),
    _yaml("class of no module", "model: {sde: a.b.C}\n", "bad.yaml:1: model.sde", "'a.b.C'", "there is no module 'a'"),
    _yaml("function for class", "model: {sde: os.system}\n", "bad.yaml:1: model.sde", "'os.system'", "not a class"),
    _yaml(
        "class of another kind", "model: {sde: torch.nn.Identity}\n", "model.sde", "Identity' is no", "guardlit.sde.SDE"
    ),
    _yaml("number for class_path", "model: {sde: {class_path: 3}}\n", "bad.yaml:1: class_path", "found 3", "name of a"),
    _yaml("list of classes", "model: {sde: [ODE]}\n", "bad.yaml:1: model.sde", "found ['ODE']", "expected a SDE"),
    _yaml("truth for class", "model: {sde: true}\n", "bad.yaml:1: model.sde", "found True", "expected a SDE"),
    _yaml(
        "misspelt init_args",
        "model: {sde: {class_path: CPS, init_arg: {noise_level: 1}}}\n",
        "bad.yaml:1",
        "found 'init_arg' next to class_path",
        "stand in init_args",
    ),
    _yaml("init_args as list", "model: {sde: {class_path: CPS, init_args: [1]}}\n", "bad.yaml:1", "a list", "mapping"),
    _yaml("list for section", "data: [1]\n", "bad.yaml:1: data", "found a list", "expected a mapping of settings"),
    _yaml("list within section", "model: {rollout: [1]}\n", "bad.yaml:1: model.rollout", "a list", "a mapping"),
    _yaml("number within section", "model: {rollout: 10}\n", "bad.yaml:1: model.rollout", "found 10", "a mapping"),
    _yaml("null within section", "model: {rollout: null}\n", "bad.yaml:1: model.rollout", "found null", "a mapping"),
    _yaml("file of a section", "data: no.yaml\n", "bad.yaml:1: data", "'no.yaml'", "or a file of them"),
    _yaml("required key removed", "model: {reward: null}\n", "missing model.reward", "missing", "give --model.reward"),
    _base("missing base", "base: none.yaml\n", "no file none.yaml", "there is no file"),
    _base("folder as base", "base: model\n", "model", "there is no file"),
    _base("number as base", "base: [1]\n", "base", "expected a file or a list of files"),
    _base("base of itself", "base: bad.yaml\n", "builds on itself", "by way of bad.yaml"),
    Case("circle of bases", _circle, "b.yaml:1: base", "a.yaml builds on itself", "by way of b.yaml"),
]
INTEGER = "expected an integer"
VALUES = [
    _yaml("text for integer", "data: {micro_batch: four}\n", "bad.yaml:1: data.micro_batch", "found 'four'", INTEGER),
    _yaml("float for integer", "data: {micro_batch: 2.5}\n", "bad.yaml:1: data.micro_batch", "found 2.5", INTEGER),
    _yaml("list for integer", "data: {micro_batch: [1]}\n", "bad.yaml:1: data.micro_batch", "found [1]", INTEGER),
    _yaml("mapping for integer", "data: {micro_batch: {a: 1}}\n", "data.micro_batch", "found {'a': 1}", INTEGER),
    _yaml("truth for integer", "data: {micro_batch: yes}\n", "data.micro_batch", "found True", INTEGER),
    _yaml("null for integer", "data: {micro_batch: null}\n", "data.micro_batch", "found null", INTEGER),
    _yaml("list for text", "data: {train: [a.txt]}\n", "bad.yaml:1: data.train", "found ['a.txt']", "expected text"),
    _yaml("number for settings", "model: {kl: 1}\n", "bad.yaml:1: model.kl", "found 1", "expected a KL or null"),
    _option("null for a parameter", "model.policy.resolution=null", "found null", INTEGER),
    _option("nothing for an integer", "data.micro_batch=", "found", INTEGER),
    _option("huge float for integer", "data.micro_batch=1e30", "found '1e+30'", INTEGER),
    _option("word for choice", "model.old_velocity=recalculated", "found 'recalculated'", "recomputed?"),
    _option("word for dtype", "model.policy.weights_dtype=fp8", "found 'fp8'", "'bf16'"),
    _option("optimizer without its parameter", "model.lr_scheduler=StepLR", "StepLR needs", "step_size"),
    _option("number for callback", "trainer.callbacks=[3]", "found [3]", "a Callback"),
    _option("seed of the data", "data.seed=3", "data.seed", 'given via "seed_everything"', "data.seed"),
]


def _number(option: str, found: str, right: str) -> Case:
    return line(option, [*FIT, f"--{option}"], found.partition("=")[0], found, right)


NUMBERS = [
    _number("data.prompts_per_round=-1", "prompts_per_round=-1", "at least 1"),
    _number("data.images_per_prompt=1", "images_per_prompt=1", "at least 2 images"),
    _number("data.images_per_prompt=1000000000000", "images_per_prompt=1000000000000", "more than the 10000000"),
    _number("data.updates_per_round=0", "updates_per_round=0", "at least 1"),
    _number("data.inner_epochs=-2", "inner_epochs=-2", "at least 1"),
    _number("data.micro_batch=-1", "micro_batch=-1", "at least 1"),
    _number("data.rollout_batch=0", "rollout_batch=0", "at least 1"),
    _number("data.val_limit=-1", "val_limit=-1", "at least 1"),
    _number("data.val_images_per_prompt=0", "val_images_per_prompt=0", "at least 1"),
    _number("seed_everything=-1", "found -1", "must lie in 0 to 4294967295"),
    _number("seed_everything=99999999999999999999", "found 99999999999999999999", "must lie in 0 to"),
    _number("model.rollout.num_inference_steps=0", "num_inference_steps=0", "at least 1"),
    _number("model.rollout.num_inference_steps=1000000000000", "num_inference_steps=1000000000000", "at most 1000"),
    _number("model.rollout.timestep_fraction=.nan", "timestep_fraction=nan", "must lie in (0, 1]"),
    _number("model.rollout.guidance_scale=.nan", "guidance_scale=nan", "at least 1"),
    _number("model.evaluation.guidance_scale=.inf", "guidance_scale=inf", "at least 1"),
    _number("model.sde.noise_level=.nan", "noise_level=nan", "must lie in [0, inf)"),
    _number("model.sde.noise_level=.inf", "noise_level=inf", "must lie in [0, inf)"),
    _number("model.objective.clip_range=.nan", "clip_range=nan", "must be positive"),
    _number("model.kl.weight=.nan", "kl.weight=nan", "must be positive and finite"),
    _number("model.kl.weight=.inf", "kl.weight=inf", "must be positive and finite"),
    _number("model.advantage.clip=-1", "advantage.clip=-1.0", "must be positive and finite"),
    _number("model.advantage.eps=.nan", "advantage.eps=nan", "at least 0"),
    _number("model.max_failed_fraction=2", "max_failed_fraction=2.0", "must lie in [0, 1]"),
    _number("model.max_failed_fraction=.nan", "max_failed_fraction=nan", "must lie in [0, 1]"),
    _number("model.policy.lora.rank=0", "lora.rank=0", "at least 1"),
    _number("model.policy.lora.alpha=.inf", "lora.alpha=inf", "must be positive and finite"),
    _number("model.policy.lora.init=zeros", "lora.init=zeros", "gaussian or default"),
    _number("model.policy.lora.targets=[]", "lora.targets is empty", "name layers"),
    _number("model.policy.resolution=-32", "resolution=-32", "at least 1"),
    _number("model.policy.max_sequence_length=0", "max_sequence_length=0", "at least 1"),
    _number("model.policy.max_sequence_length=1000000", "max_sequence_length=1000000", "at most 1024 tokens"),
    _number("model.policy.decode_batch=0", "decode_batch=0", "at least 1"),
    _number("model.policy.copies_device=mars", "copies_device=mars", "write cpu, cuda:0 or null"),
]
TRAINER = [
    _option("devices=-3", "trainer.devices=-3", "`devices` selected", "int > 0", place="trainer:"),
    _option("accelerator=qpu", "trainer.accelerator=qpu", "accelerator='qpu'", "Available", place="trainer:"),
    _option("strategy=dddp", "trainer.strategy=dddp", "dddp is not supported", "mean ddp?", place="trainer.strategy"),
    _option("max_epochs=-5", "trainer.max_epochs=-5", "trainer.max_epochs=-5", "at least -1", place="trainer"),
    _option("max_steps=-7", "trainer.max_steps=-7", "-7", "non-negative integer or -1", place="max_steps"),
    _option("max_time=soon", "trainer.max_time=soon", "'soon'", "DD:HH:MM:SS", place="trainer:"),
    _option("num_nodes=0", "trainer.num_nodes=0", "num_nodes=0", "at least 1", place="trainer.num_nodes"),
    _option("gradient_clip_val=.nan", "trainer.gradient_clip_val=.nan", "=nan", "at least 0", place="trainer."),
    _option("check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0", "=0", "at least 1", "trainer."),
    _option("profiler=warp", "trainer.profiler=warp", "`profiler`", "'simple', 'advanced'", place="trainer:"),
    _option("precision=8", "trainer.precision=8", "found 8", "'bf16-mixed'"),
    _option(
        "trainer.default_root_dir=/dev/null/x",
        "trainer.default_root_dir=/dev/null/x",
        "Not a directory",
        "cannot be written",
        place="output folder /dev/null/x",
    ),
]
ENVIRONMENT = [
    _variable("FIT__DATA__MICRO_BATCH", "x", "found 'x'", INTEGER),
    _variable("FIT__DATA__MICRO_BACH", "3", "no setting has this name", "did you mean GUARDLIT_FIT__DATA__MICRO_BATCH"),
    _variable("FIT__DATA", "[1", "found '[1'", "expected a mapping of settings"),
    _variable("FIT__MODEL__SDE", "FlowSD", "'FlowSD' is no known SDE", "did you mean FlowSDE?"),
    _variable("FIT__MODEL__SDE", "{class_path: CPS, init_args: {eta: 1}}", "no option 'eta'", "known: noise_level"),
    _variable("FIT__MODEL__ROLLOUT", "10", "found '10'", "expected a mapping of settings"),
    _variable("FIT__SEED_EVERYTHING", "abc", "found 'abc'", "true or false or an integer"),
    _variable("FIT__CONFIG", "none.yaml", "there is no file none.yaml", "expected a YAML file"),
    _variable("CONFIG", "none.yaml", "there is no file none.yaml", "expected a YAML file"),
]
CASES = [*SYNTAX, *KEYS, *VALUES, *NUMBERS, *TRAINER, *ENVIRONMENT]
