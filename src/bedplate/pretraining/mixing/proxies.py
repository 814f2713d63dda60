"""Small runs that differ in their mixture alone, and the loss of each on held-out texts: runs like any other, which the
same call resumes where they were stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bedplate.core.errors import TrainingError
from bedplate.core.files import sha256_json
from bedplate.pretraining.run.directory import evaluations, read_record
from bedplate.pretraining.run.pretrain import pretrain
from bedplate.pretraining.runfile.file import RunFile


@dataclass(frozen=True)
class Proxy:
    """A finished run. shares: of the tokens that were seen, by source; losses: bits a byte of held-out texts, by
    domain."""

    name: str
    shares: Mapping[str, float]
    losses: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def proxy_file(run: RunFile, corpus: Path, weights: Mapping[str, float]) -> RunFile:
    """The run file of one: judged at its end alone, on the corpus in `corpus`, with these weights."""
    values = run.model_dump(mode="json")
    values["run"] = f"{run.run}-{_name(weights)}"
    values["data"] = {"corpus": str(corpus), "mixture": {"weights": dict(weights)}, "general": list(run.data.general)}
    values["checkpoints"] = {"every": 1.0, "seconds": run.checkpoints.seconds}
    evaluation = run.evaluation
    values["evaluation"] = {"tokens": evaluation.tokens, "end_tokens": evaluation.end_tokens, "baselines": False}
    if run.base is not None:
        values["base"] = run.base_source
    proxy_run = RunFile.model_validate(values)
    proxy_run.lies_in(run.directory)
    return proxy_run


def proxy(run: RunFile, corpus: Path, weights: Mapping[str, float], runs: Path, domains: Sequence[str]) -> Proxy:
    """Trains one in a directory below `runs`, unless it is finished there.

    Raises as `pretrain`; TrainingError where the end could not be judged.
    """
    proxy_run = proxy_file(run, corpus, weights)
    place = runs / _name(weights)
    if read_record(place).get("status") != "finished":
        pretrain(proxy_run, place, catalogued=False)  # it is a measurement: nobody is to adapt its base
    token_counts: Mapping[str, int] = read_record(place)["seen"]
    judged = evaluations(place)[-1]["held_out"]
    missing = [name for name in domains if name not in judged]
    if missing:
        raise TrainingError(
            f"{place} was not judged on {', '.join(missing)} (see {place / 'evaluations.jsonl'}); remove it and run "
            "the same command again"
        )
    return Proxy(
        place.name,
        {name: token_counts.get(name, 0) / sum(token_counts.values()) for name in weights},
        {name: float(judged[name]["bits_per_byte"]) for name in domains},
    )


def _name(weights: Mapping[str, float]) -> str:
    return f"mixture-{sha256_json(dict(weights))[:12]}"
