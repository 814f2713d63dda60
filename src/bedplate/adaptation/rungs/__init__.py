"""The ways to adapt, cheapest first. RUNGS is the table of all there are."""

from __future__ import annotations

from bedplate.adaptation.rungs.cascade import Cascade
from bedplate.adaptation.rungs.continued_pretrain import ContinuedPretrain
from bedplate.adaptation.rungs.few_shot import FewShot
from bedplate.adaptation.rungs.from_scratch import FromScratch
from bedplate.adaptation.rungs.full import FULL
from bedplate.adaptation.rungs.hosted import Hosted
from bedplate.adaptation.rungs.knn_few_shot import KnnFewShot
from bedplate.adaptation.rungs.lora import DORA, LORA
from bedplate.adaptation.rungs.majority import Majority
from bedplate.adaptation.rungs.own_prompt import OwnPromptRung
from bedplate.adaptation.rungs.probe import Probe
from bedplate.adaptation.rungs.prompt_search import PromptSearch
from bedplate.adaptation.rungs.retrieval import RetrievalRung
from bedplate.adaptation.rungs.rung import Role, Rung
from bedplate.adaptation.rungs.soft_prompt import SOFT_PROMPT
from bedplate.adaptation.rungs.zero_shot import ZeroShot
from bedplate.adaptation.task.spec import AdaptSpec

RUNGS: dict[str, Rung] = {
    "majority": Majority(),
    "from_scratch": FromScratch(),
    "zero_shot": ZeroShot(),
    "own_prompt": OwnPromptRung(),
    "few_shot": FewShot(),
    "knn_few_shot": KnnFewShot(),
    "retrieval": RetrievalRung(),
    "prompt_search": PromptSearch(),
    "probe": Probe(),
    "soft_prompt": SOFT_PROMPT,
    "lora": LORA,
    "dora": DORA,
    "full": FULL,
    "continued_pretrain": ContinuedPretrain(),
    "hosted": Hosted(),
    "cascade": Cascade(),
}


def chosen_rungs(spec: AdaptSpec) -> tuple[str, ...]:
    """The rungs that a task file asks for, cheapest first."""
    return tuple(name for name in RUNGS if spec.includes(name))


def rung_of(candidate: str) -> Rung:
    """The rung of a candidate: its name, without the base's behind it."""
    return RUNGS[candidate.partition("@")[0]]


def in_role(role: Role) -> str:
    """The rung that plays a part which only one plays."""
    return next(name for name, rung in RUNGS.items() if rung.traits.role == role)
