"""Mixture search: small runs over mixtures, a fitted response for each domain, the best mixture, one run to check it.

Follows RegMix (https://arxiv.org/abs/2407.01492): the order of mixtures in small runs is taken for that in large ones.
Each run stays in the directory; the same call resumes, also with more runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.core.errors import ConfigError, TrainingError, UsageError
from bedplate.core.files import atomic_write, read_text, sha256_json
from bedplate.core.json import differences, load_json
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.corpus.shards import Corpus
from bedplate.data.mixture import Mixture, MixtureConfig
from bedplate.pretraining.mixing.response import CONFIDENCE, Array, Best, Response, best, capped, design, fit
from bedplate.pretraining.run.data import built_corpus
from bedplate.pretraining.run.directory import CORPUS, evaluations, read_record
from bedplate.pretraining.run.pretrain import pretrain
from bedplate.pretraining.runfile.file import RunFile, changes
from bedplate.training.parallel.launch import process_of


@dataclass(frozen=True)
class Proxy:
    """A finished run. shares: of the tokens that were seen, by source; losses: bits a byte of held-out texts, by
    domain."""

    name: str
    shares: Mapping[str, float]
    losses: Mapping[str, float]


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


SEARCH, RESULT = "search.json", "mixture.json"
EPOCHS = 4.0
"""How often a source is seen at most where the run file says nothing: up to here tokens seen again are worth about as
much as new ones (https://arxiv.org/abs/2305.16264)."""


@dataclass(frozen=True)
class Search:
    """sources, in order; goal: the weight of each domain; responses by domain. checked: a run of the best mixture,
    which is no part of what the responses were fitted to."""

    directory: Path
    sources: tuple[str, ...]
    goal: Mapping[str, float]
    proxies: tuple[Proxy, ...]
    responses: Mapping[str, Response]
    best: Best
    checked: Proxy

    def goal_of(self, run: Proxy) -> float:
        """The goal's loss of a run: the mean over domains by their weights."""
        return sum(run.losses[name] * weight for name, weight in self.goal.items()) / sum(self.goal.values())

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the best mixture, for `data.mixture.weights`."""
        return dict(zip(self.sources, _rounded([share.value for share in self.best.shares]), strict=True))

    def to_json(self) -> dict[str, Any]:
        """What mixture.json holds."""
        first, checked = self.proxies[0], self.checked
        domains = list(self.responses)
        return {
            "version": 1,
            "confidence": CONFIDENCE,
            "weights": self.weights,
            "goal": dict(self.goal),
            "sources": {
                name: {"share": asdict(share), "first": first.shares[name]}
                for name, share in zip(self.sources, self.best.shares, strict=True)
            },
            "domains": {
                name: {
                    "first": {"measured": first.losses[name], "predicted": asdict(before)},
                    "best": {"measured": checked.losses[name], "predicted": asdict(after)},
                    "inside": after.low <= checked.losses[name] <= after.high,
                    "explained": response.explained,
                    "response": [
                        {
                            "form": response_fit.form,
                            "number": response_fit.number,
                            "weight": weight,
                            "constants": response_fit.constants.tolist(),
                            "error": response_fit.error,
                        }
                        for response_fit, weight in zip(response.fits, response.weights, strict=True)
                    ],
                }
                for name, before, after, response in zip(
                    domains, self.best.before, self.best.losses, self.responses.values(), strict=True
                )
            },
            "gain": {
                "predicted": asdict(self.best.gain),
                "measured": self.goal_of(first) - self.goal_of(checked),
                "better": self.best.better,
            },
            "runs": [asdict(proxy_run) for proxy_run in (*self.proxies, checked)],
        }


def search(
    run: RunFile,
    out: Path,
    *,
    runs: int | None = None,
    goal: Mapping[str, float] | None = None,
    tokens: float | None = None,
    on_progress: Callable[[int, int, Proxy], None] = lambda *_: None,
) -> Search:
    """Trains `runs` small runs of the run file (by default four per source and four more), each with another mixture,
    and one more with the mixture that is best for the goal. The result is also written to `out` as mixture.json.

    goal: weight of each held-out domain, by default equal for those to be learned. tokens: of the run that the mixture
    is for; no source is then used more often than data.mixture.epochs says. on_progress: called after each run.

    Raises ConfigError for a run file without a corpus of several sources or whose objective has no bits per byte,
    UsageError for too few runs, a directory of something else or several processes, and what `pretrain` raises.
    """
    if process_of(os.environ).world > 1:
        raise UsageError("a search for a mixture is one process; start it without torchrun or srun")
    objective = run.made_objective()
    if objective.target != "token":
        raise ConfigError(
            f"mixtures are compared by bits a byte, and the objective {run.objective} says no text: search with "
            "next_token or masked"
        )
    _refuse_others(out)
    corpus = _corpus(run, out)
    first = _first(run, corpus)
    domains = [name for name in corpus.sources if corpus.shards(name, "valid")]
    goal_weights = _goal(goal, domains, [name for name in first if name not in run.data.general])
    count = 4 * len(first) + 4 if runs is None else runs
    if count < len(first) + 3:
        raise UsageError(f"--runs is {count}: {len(first)} sources need at least {len(first) + 3}")
    _check_unchanged(out, run, corpus, tokens)
    most_K = _max_shares(run, corpus, list(first), tokens)
    first_K = capped(np.array(list(first.values())), most_K)
    mixtures = design(first_K, most_K, count, run.seed)

    def run_proxy(shares: Sequence[float]) -> Proxy:
        weights = {name: 0.0 for name in corpus.sources if corpus.shards(name, "train")}
        weights.update(zip(first, _rounded(shares), strict=True))
        return proxy(run, corpus.directory, weights, out / "runs", domains)

    proxies: list[Proxy] = []
    for shares_K in mixtures:
        proxies.append(run_proxy(shares_K.tolist()))
        on_progress(len(proxies), count + 1, proxies[-1])
    tried_NK = np.array([[proxied.shares[name] for name in first] for proxied in proxies])
    responses = {name: fit(tried_NK, np.array([proxied.losses[name] for proxied in proxies])) for name in domains}
    weights = [goal_weights.get(name, 0.0) for name in domains]
    most_K = np.maximum(most_K, tried_NK[0])  # which whole rows may go beyond
    optimum = best(tried_NK, tried_NK[0], most_K, list(responses.values()), weights, run.seed)
    checked = run_proxy([share.value for share in optimum.shares])
    on_progress(count + 1, count + 1, checked)
    result = Search(out, tuple(first), goal_weights, tuple(proxies), responses, optimum, checked)
    atomic_write(out / RESULT, json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")
    return result


def _corpus(run: RunFile, out: Path) -> Corpus:
    if run.data.corpus is not None:
        return Corpus.open(run.place(run.data.corpus).absolute())
    if run.data.recipe is None:
        raise ConfigError("a mixture is searched for a corpus: give data.corpus or data.recipe, not data.sources")
    return built_corpus(run, out.absolute())


def _first(run: RunFile, corpus: Corpus) -> dict[str, float]:
    """The mixture that the run file or the recipe gives, or else what there is of each: sources with a share of it."""
    config = run.data.mixture or MixtureConfig()
    if config.stages:
        raise ConfigError("data.mixture.stages: one mixture is searched for, for all of the run; leave the stages out")
    tokens = {name: corpus.tokens(name, "train") for name in corpus.sources if corpus.shards(name, "train")}
    recipe_weights = {name: weight for name in tokens if (weight := corpus.sources[name].weight) is not None}
    shares = Mixture(config.model_copy(update={"epochs": None}), tokens, 1, 0, recipe_weights).weights_at(0.0)
    used_shares = {name: share for name, share in shares.items() if share > 0}
    if len(used_shares) < 2:
        raise ConfigError(f"{corpus.directory} has one source to learn from: there is no mixture to search for")
    return used_shares


def _goal(goal: Mapping[str, float] | None, domains: Sequence[str], learned: Sequence[str]) -> dict[str, float]:
    if goal is None:
        goal = {name: 1.0 for name in domains if name in learned}
    for name, weight in goal.items():
        if name not in domains:
            hint = did_you_mean(nearest(name, domains)) or f"there are {', '.join(domains) or 'none'}"
            raise UsageError(f"the goal names {name!r}, of which no text is held out; {hint}")
        if weight < 0:
            raise UsageError(f"the goal gives {name!r} the weight {weight:g}; a weight is not below 0")
    if not sum(goal.values()) > 0:
        raise UsageError("the goal is empty: give a held-out domain a weight above 0")
    return dict(goal)


def _max_shares(run: RunFile, corpus: Corpus, names: Sequence[str], tokens: float | None) -> Array:
    """The largest share that each source may have."""
    if tokens is None:
        return np.ones(len(names))
    epochs = EPOCHS if run.data.mixture is None or run.data.mixture.epochs is None else run.data.mixture.epochs
    caps = [epochs.get(name, np.inf) if isinstance(epochs, Mapping) else epochs for name in names]
    return np.minimum(1.0, [cap * corpus.tokens(name, "train") / tokens for name, cap in zip(names, caps, strict=True)])


def _refuse_others(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a directory for the search")
    foreign = {name for name in os.listdir(out) if not name.startswith(".")} - {CORPUS} if out.is_dir() else set()
    if foreign and not (out / SEARCH).is_file():
        raise UsageError(f"{out} is not empty and holds no search for a mixture; name another directory")


def _check_unchanged(out: Path, run: RunFile, corpus: Corpus, tokens: float | None) -> None:
    """Notes what the search is of. UsageError where the directory is of another."""
    settings = {"run": run.model_dump(mode="json"), "corpus": corpus.sha256, "tokens": tokens}
    path = out / SEARCH
    if path.is_file():
        try:
            recorded = load_json(read_text(path))
            changed, _ = changes(RunFile.model_validate(recorded["run"]), run)
            identity = ("corpus", "tokens")
            before, now = ({key: values[key] for key in identity} for values in (recorded, settings))
            changed += differences(before, now).values()
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is damaged or of another version ({error}); give another directory") from error
        if changed:
            raise UsageError(f"{out} holds a search begun with other values: {'; '.join(changed)}; give another --out")
    atomic_write(path, json.dumps(settings, indent=1) + "\n")


def _rounded(shares: Sequence[float]) -> list[float]:
    return [round(share, 6) for share in shares]
