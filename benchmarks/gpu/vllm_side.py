"""vLLM's side, run by the Python of its own environment, without a line of ours.

usage: vllm_side.py MODEL PROMPT OUTPUT LONG ROWS...
"""

from __future__ import annotations

import json
import random
import sys
import time


def main() -> None:
    import vllm

    model, prompt, output, long, *rows = sys.argv[1], *map(int, sys.argv[2:])
    engine = vllm.LLM(model, skip_tokenizer_init=True, enable_prefix_caching=False, gpu_memory_utilization=0.4)
    vocabulary = engine.llm_engine.model_config.get_vocab_size()
    source = random.Random(0)

    def run(count: int, length: int, output_tokens: int) -> None:
        inputs = [{"prompt_token_ids": [source.randrange(3, vocabulary) for _ in range(length)]} for _ in range(count)]
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False)
        engine.generate(inputs, sampling, use_tqdm=False)

    def best(count: int, length: int, output_tokens: int) -> float:
        run(count, length, output_tokens)
        timings: list[float] = []
        for _ in range(3):
            began = time.perf_counter()
            run(count, length, output_tokens)
            timings.append(time.perf_counter() - began)
        return min(timings)

    decode = {
        count: count * output / max(best(count, prompt, output + 1) - best(count, prompt, 1), 1e-9) for count in rows
    }
    results = {"version": vllm.__version__, "prompt": long / best(1, long, 1), "decode": decode}
    print("FOUND " + json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
