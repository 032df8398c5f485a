"""Malformed command lines of every command."""

from __future__ import annotations

import os
from collections.abc import Sequence

from malformed.case import FIT, RUN, Case, World, file, line

SERVE = ["serve-reward", "--scorers", "{a: JPEGCompressibility}", "--port", "0"]
GOLD = ["evaluate", *RUN, "--gold.scorers", "{a: JPEGCompressibility}"]
JSON = '{"_class_name": "FlowMatchEulerDiscreteScheduler", %s}'


def _line(command: str, place: str, found: str, right: str) -> Case:
    return line(command, _words(command), place, found, right)


def _words(command: str) -> list[str]:
    words = [([*RUN] if word == "RUN" else [word]) for word in command.split()]
    return [part for group in words for part in group]


def _pipe(world: World) -> Sequence[str]:
    os.mkfifo(world.folder / "pipe.yaml")
    return ["fit", "--config", "pipe.yaml"]


def _schedule(what: str, content: str | bytes, found: str, right: str) -> Case:
    def spoil(world: World) -> Sequence[str]:
        world.write("pipe/scheduler/scheduler_config.json", content)
        return ["schedule", "--model", "pipe"]

    return Case(f"schedule: {what}", spoil, "pipe/scheduler/scheduler_config.json", found, right)


def _run_folder(what: str, files: dict[str, str | bytes], place: str, found: str, right: str) -> Case:
    def spoil(world: World) -> Sequence[str]:
        for name, content in {"metrics.csv": "epoch,step,train/loss\n0,1,0.5\n", **files}.items():
            world.write(f"logged/{name}", content)
        return ["report", "logged", "--out", "page"]

    return Case(f"report: {what}", spoil, place, found, right)


def _serve(what: str, options: Sequence[str], place: str, found: str, right: str) -> Case:
    return line(f"serve-reward: {what}", [*SERVE, *options], place, found, right)


def _gold(what: str, options: Sequence[str], place: str, found: str, right: str) -> Case:
    return line(f"evaluate: {what}", [*GOLD, *options], place, found, right)


FIRST = [
    _line("fitt", "guardlit: error", "unknown command 'fitt'", "did you mean fit?"),
    _line("zzz", "guardlit: error", "unknown command 'zzz'", "commands are fit, validate"),
    _line("--foo", "guardlit: error", "found '--foo'", "guardlit COMMAND [options]"),
    line("no command", [""], "guardlit: error", "unknown command ''", "commands are fit, validate"),
]
FITTING = [
    _line("fit", "model.policy, model.reward, data.train", "missing", "give --model.policy or set it"),
    _line("fit --config", "-c/--config", "argument -c/--config", "expected one argument"),
    _line("fit --config nope.yaml", "--config", "no such file: nope.yaml", "no such file"),
    _line("fit --config rn.yaml", "--config", "no such file: rn.yaml", "did you mean run.yaml?"),
    _line("fit --config .", ".: cannot be read", "no regular file", "a YAML file is needed"),
    _line("fit --config /dev/zero", "/dev/zero", "no regular file", "a YAML file is needed"),
    Case("fit --config PIPE", _pipe, "pipe.yaml", "no regular file", "a YAML file is needed"),
    line("fit --config ''", ["fit", "--config", ""], "--config", "found nothing", "the name of a YAML file"),
    _line("fit RUN stray", "guardlit fit", "found 'stray'", "where an option belongs"),
    _line("fit RUN --data.micro_batch 3 4", "guardlit fit", "found '4'", "where an option belongs"),
    _line("fit sample", "guardlit fit", "found 'sample'", "where an option belongs"),
    _line("fit RUN --model.rewrd x", "--model.rewrd", "unknown option", "did you mean --model.reward?"),
    _line("fit RUN --data.micro_batch", "--data.micro_batch", "argument --data.micro_batch", "expected one argument"),
    _line("fit RUN --base x.yaml", "--base", "--base belongs", "at the top of a configuration file"),
    _line("fit RUN --data [1,2]", "--data", "found '[1,2]'", "expected a mapping of settings"),
    _line("fit RUN --trainer.callbacks+=Nope", "--trainer.callbacks", "'Nope'", "is no known Callback"),
    line(
        "fit RUN --model.sde {class_path: 3}",
        [*FIT, "--model.sde", "{class_path: 3}"],
        "--model.sde",
        "expected a name",
        "class_path and init_args",
    ),
    line(
        "fit RUN --model.policy.lora {3: 4}",
        [*FIT, "--model.policy.lora", "{3: 4}"],
        "--model.policy.lora",
        "got: 3",
        "must be a string",
    ),
]
OTHERS = [
    _line("validate", "model.policy", "missing", "give --model.policy"),
    _line("validate RUN --data.val null", "data.val", "it is null", "validate needs data.val"),
    _line("validate RUN --out x", "--out", "unknown option --out", "unknown option"),
    _line("sample RUN --n 0", "n=0", "n=0", "at least 1"),
    _line("sample RUN --n x", "--n", "found 'x'", "expected an integer"),
    _line("sample RUN --prompts cat.txt", "in /", "no prompt file cat.txt", "no prompt file"),
    _line("sample RUN --prompts [cat", "--prompts", "a list that is no JSON", "write --prompts a b"),
    _line("sample RUN --prompts \u200b", "--prompts: text 1", "invisible characters (U+200B)", "write a prompt"),
    _line("sample RUN --prompts [3]", "--prompts", "found 3", "expected text"),
    _line('sample RUN --prompts [""]', "--prompts: text 1", "is blank", "write a prompt"),
    _line('sample RUN --prompts ["a","\\u0000"]', "--prompts: text 2", "a NUL", "UTF-8"),
    _line("sample RUN --raw maybe", "--raw", "found 'maybe'", "expected true or false"),
    _line("sample RUN --data.val null", "sample", "needs --prompts", "data.val"),
    _line("sample RUN --n 1 --out /dev/null/x", "/dev/null/x", "Not a directory", "cannot be written"),
    _line("export RUN", "export", "without one", "needs --ckpt_path"),
    _line("export RUN --output x", "--output", "unknown option", "did you mean --out?"),
    _line("export RUN --to onnx", "--to", "found 'onnx'", "expected one of 'diffusers', 'comfyui', 'peft'"),
    _line("export RUN --merged maybe", "--merged", "found 'maybe'", "expected true or false"),
    _line("push", "guardlit push", "FOLDER, --repo", "(guardlit push FOLDER --repo OWNER/NAME)"),
    _line("push . --repo a/b --privat", "--privat", "unknown option", "did you mean --private?"),
    _line("push . --repo a/b/c", "--repo a/b/c", "no name of a repository", "OWNER/NAME"),
]
EVALUATE = [
    _line("evaluate RUN", "gold.scorers", "missing", "give --gold.scorers"),
    _line("evaluate RUN --gold.scorers {}", "gold.scorers", "is empty", "name at least one"),
    _line("evaluate RUN --gold.scorers 3", "--gold.scorers", "found 3", "expected a mapping"),
    _line("evaluate RUN --gold.scorers {3:ODE}", "--gold.scorers", "ODE", "expected"),
    _gold("number for column", ["--gold.scorers", "{3: JPEGCompressibility}"], "gold", "found 3", "must be text"),
    _gold("column with a slash", ["--gold.scorers", "{a/b: OCR}"], "gold.scorers", "'a/b'", "a column's name"),
    _gold("unknown column in the Average", ["--gold.average", "[b]"], "gold.average", "no scorer 'b'", "there are a"),
    _gold("no resamples", ["--gold.resamples", "0"], "gold.resamples", "=0", "at least 1"),
    _gold("no images", ["--images_per_prompt", "0"], "images_per_prompt", "=0", "at least 1"),
    _gold("missing checkpoint", ["--ckpt", "nope"], "--ckpt nope", "does not exist", "must be a checkpoint"),
    _gold("checkpoint without a name", ["--ckpt"], "--ckpt", "argument --ckpt", "expected at least one argument"),
    _gold("broken list", ["--ckpt", "[broken"], "--ckpt", "no JSON", "write --ckpt a b"),
    _gold("number for checkpoint", ["--ckpt", '["a", 3]'], "--ckpt", "found 3", "expected text"),
    _gold("label of nothing", ["--label", "x"], "--label", "1 --label for 0 --ckpt", "give one for each"),
    _gold("unknown weights", ["--weights", "emma"], "--weights", "found 'emma'", "did you mean ema?"),
    _gold("missing prompts", ["--prompts", "no.txt"], "in /", "no prompt file no.txt", "no prompt file"),
    _gold("unwritable folder", ["--out", "/dev/null/x"], "/dev/null/x", "Not a directory", "cannot be written"),
    _line("evaluate RUN --rescore", "evaluation/run.yaml", "there is no", "--rescore needs the images"),
    _line("evaluate RUN --rescore perhaps", "--rescore", "'perhaps'", "choose from 'true', 'false'"),
]
PLAN = [
    _line("plan --config nope.yaml", "--config", "no such file: nope.yaml", "no such file"),
    _line("plan RUN --tflops x", "--tflops", "'x'", "float"),
    _line("plan RUN --tflops inf", "--tflops", "inf", "must be positive"),
    _line("plan RUN --mfu nan", "--mfu", "nan", "lie in (0, 1]"),
    _line("plan RUN --json", "--json", "argument --json", "expected one argument"),
    _line("plan RUN --json .", "--json .", "it is a folder", "cannot be written"),
    _line("plan RUN --json /dev/null/x", "--json /dev/null/x", "cannot be written", "cannot be written"),
    _line("plan RUN --trainer.devices many", "trainer.devices", "=many", "at least 1, or auto"),
    _line("plan RUN --trainer.max_epochs null", "trainer.max_epochs", "is not set", "say how many rounds"),
    _line("plan RUN --trainer.precision 16-true", "trainer.precision", "=16-true", "take 16-mixed"),
    _line("plan RUN --data.train no.txt", "in /", "no prompt file no.txt", "no prompt file"),
    _line("plan RUN --data.micro_batch 5 --data.exact_micro_batch=true", "micro_batch", "= 5", "it is by 2, 4, 8"),
]
REPORT = [
    _line("report", "guardlit report", "arguments are required", "RUN, --out"),
    _line("report nope --out page", "run nope", "is no folder", "that holds its metrics.csv"),
    _line("report model --out page", "run model", "holds no logged data", "metrics.csv"),
    _run_folder("binary metrics", {"metrics.csv": b"\xff\xfe\0"}, "metrics.csv", "byte 0xff", "utf-8"),
    _run_folder("word in metrics", {"metrics.csv": "step,a\nx,1\n"}, "metrics.csv:2", "'x'", "is no number"),
    _run_folder("broken config", {"config.yaml": "a: ["}, "logged/config.yaml", "stream end", "is no YAML"),
    _run_folder("broken run.json", {"run.json": "{"}, "logged/run.json", "line 1 column 2", "cannot be read"),
    _run_folder("list in run.json", {"run.json": "[1]"}, "logged/run.json", "holds a list", "must be a mapping"),
]
SCHEDULE = [
    _line("schedule --steps 0", "--steps", "--steps 0", "must lie in 1 to 1000"),
    _line("schedule --steps 1000000000000", "--steps", "1000000000000", "must lie in 1 to 1000"),
    _line("schedule --steps x", "--steps", "'x'", "int"),
    _line("schedule --stps 3", "--stps", "unknown option", "did you mean --steps?"),
    _line("schedule --sde flw", "--sde", "'flw'", "choose from 'flow', 'dance'"),
    _line("schedule --sde ode --noise-level 1", "--sde ode", "draws no noise", "leave --noise-level out"),
    _line("schedule --shift nan", "--shift", "=nan", "must be positive and finite"),
    _line("schedule --noise-level -1", "noise_level", "=-1.0", "must lie in [0, inf)"),
    _line("schedule --timestep-fraction nan", "--timestep-fraction", "nan", "must lie in (0, 1]"),
    _line("schedule --model nope", "--model nope", "No such file", "pipeline folder"),
    _line("schedule --csv /dev/null/x", "--csv /dev/null/x", "Not a directory", "cannot be written"),
    _line("schedule --plot x.xyz", "--plot x.xyz", "'xyz' is not supported", "supported formats"),
    _schedule("broken JSON", "{", "line 1 column 2", "not JSON"),
    _schedule("list", "[]", "found list", "only FlowMatchEulerDiscreteScheduler"),
    _schedule("other sampler", '{"_class_name": "DDIMScheduler"}', "found DDIMScheduler", "only FlowMatch"),
    _schedule("word for shift", JSON % '"shift": "a"', "shift is 'a'", "a positive number is needed"),
    _schedule("null for steps", JSON % '"num_train_timesteps": null', "is None", "a positive number is needed"),
    _schedule("not UTF-8", b"\xff", "byte 0xff", "not JSON"),
]
ABLATE = [
    _line("ablate --dry-run", "model.policy", "missing", "give --model.policy"),
    _line("ablate RUN --objectives Nope", "objective", "'Nope'", "it is one of FlowGRPO"),
    _line("ablate RUN --objectives GRPOGard", "objective", "'GRPOGard'", "did you mean GRPOGuard?"),
    _line("ablate RUN --clip x", "--clip x", "--clip x", "expected NAME=RANGE"),
    _line("ablate RUN --clip FlowGRPO=nan", "--clip", "FlowGRPO=nan", "between 0 and 1"),
    _line("ablate RUN --seeds -1", "--seeds", "'-1'", "from 0 to 4294967295"),
    _line("ablate RUN --seeds 99999999999", "--seeds", "'99999999999'", "from 0 to 4294967295"),
    _line("ablate RUN --updates 3", "--updates", "belongs to --analyze", "data.updates_per_round"),
    _line("ablate RUN --analyze --updates 99", "--updates 99", "a round has 4", "--updates 99"),
]
CONVERT = [
    _line("convert", "guardlit convert", "arguments are required", "mask2former CHECKPOINT.pth FOLDER"),
    _line("convert foo a b", "kind", "'foo'", "choose from 'mask2former'"),
    _line("convert mask2former ./no.pth out", "no.pth", "neither here nor", "name a local file of weights"),
    _line("convert mask2former run.yaml out", "run.yaml", "corrupt, or of another kind", "file of weights"),
    _line("convert mask2former model out", "model", "Is a directory", "file of weights"),
    _line("convert mask2former run.yaml model", "model", "exists already", "name a folder that does not"),
]
SERVING = [
    _line("serve-reward", "scorers", "missing", "give --scorers"),
    _line("serve-reward --config no.yaml", "--config", "no such file: no.yaml", "no such file"),
    _line("serve-reward --scorer x", "--scorer", "unknown option", "did you mean --scorers?"),
    _line("serve-reward --scorers {}", "scorers", "at least one is needed", "{pick: PickScore}"),
    _line("serve-reward --scorers 3", "--scorers", "found 3", "expected a mapping"),
    _serve("unknown scorer", ["--scorers", "{a: Nope}"], "--scorers", "'Nope'", "is no known Scorer"),
    _serve("name with a space", ["--scorers", "{a b: OCR}"], "scorers", "'a b'", "letters, digits"),
    _serve("number for name", ["--scorers", "{3: JPEGCompressibility}"], "scorers", "found 3", "must be text"),
    _serve("port", ["--port", "99999"], "port", "=99999", "from 0 to 65535"),
    _serve("word for port", ["--port", "x"], "--port", "found 'x'", "expected an integer"),
    _serve("open to all", ["--host", "0.0.0.0"], "host 0.0.0.0", "other machines", "add --allow_remote true"),
    _serve("unset token", ["--token_env", "NO_TOKEN"], "NO_TOKEN", "is not set", "put the token there"),
    _serve("device", ["--device", "mars"], "device 'mars'", "none of this machine's", "cpu, cuda"),
    _serve("queue", ["--limits.queue", "0"], "limits.queue", "=0", "must be positive"),
    _serve("merge of a stranger", ["--merge", "{b: 3}"], "merge", "b: 3", "a served scorer"),
    file("serve-reward: broken YAML", "s.yaml", "scorers: [", ["serve-reward", "--config"], "s.yaml", "stream", "YAML"),
]
CASES = [*FIRST, *FITTING, *OTHERS, *EVALUATE, *PLAN, *REPORT, *SCHEDULE, *ABLATE, *CONVERT, *SERVING]
