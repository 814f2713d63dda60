"""The kinds of requests: which class runs which."""

from __future__ import annotations

from typing import Any

from bedplate.inference.engine.job import RequestJob
from bedplate.inference.engine.kinds.classify import Classify, ClassifyJob
from bedplate.inference.engine.kinds.embed import Embed, EmbedJob
from bedplate.inference.engine.kinds.generate import Generate, GenerateJob
from bedplate.inference.engine.kinds.label import Label, LabelJob
from bedplate.inference.engine.kinds.request import Request
from bedplate.inference.engine.kinds.score import Score, ScoreJob

JOB_TYPES: dict[type[Request], type[RequestJob[Any]]] = {
    Generate: GenerateJob,
    Score: ScoreJob,
    Embed: EmbedJob,
    Classify: ClassifyJob,
    Label: LabelJob,
}
