"""How many threads the kernel's calls take where other work holds the cores: the rule alone, on made-up times."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bedplate.inference.native import compiler

DRIVER = """
#include <cstdio>
#include <cstdlib>
#include "threads.h"
// arguments: the threads there may be, then share and milliseconds of each call; prints the threads of each call
int main(int count, char** given) {
    Pace pace;
    const int most = std::atoi(given[1]);
    for (int i = 2; i + 1 < count; i += 2) {
        const int threads = pace.threads(most);
        std::printf("%d ", threads);
        pace.learn(threads, std::atof(given[i]), int64_t(std::atof(given[i + 1]) * 1e6));
    }
}
"""
QUIET, CROWDED = 0.9, 0.1


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    command = compiler.find_compiler()
    if command is None:
        pytest.skip("no C++ compiler here")
    folder = tmp_path_factory.mktemp("threads")
    (folder / "driver.cpp").write_text(DRIVER)
    headers = compiler.KERNEL
    line = [*command, "-std=c++20", "-O1", "-pthread", "-Wno-psabi", f"-I{headers}", "driver.cpp", "-o", "driver"]
    subprocess.run(line, cwd=folder, check=True, capture_output=True)
    return folder / "driver"


def thread_counts(driver: Path, max_threads: int, *calls: tuple[float, float]) -> list[int]:
    line = [str(driver), str(max_threads), *(str(value) for call in calls for value in call)]
    return [int(word) for word in subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()]


def test_all_threads_where_they_compute(driver: Path) -> None:
    assert thread_counts(driver, 8, *[(QUIET, 5.0)] * 20) == [8] * 20


def test_one_slow_moment_changes_nothing(driver: Path) -> None:
    assert thread_counts(driver, 2, (QUIET, 5), (CROWDED, 20), (QUIET, 5), (CROWDED, 20), (QUIET, 5)) == [2] * 5


def test_half_of_them_where_most_of_the_time_is_waiting(driver: Path) -> None:
    # 30 ms of slow calls halve the threads, down to one
    assert thread_counts(driver, 8, *[(CROWDED, 40.0)] * 3, (1.0, 10)) == [8, 4, 2, 1]


def test_more_are_tried_again_later_and_ever_more_seldom(driver: Path) -> None:
    counts = thread_counts(
        driver, 2, (CROWDED, 40), *[(1.0, 10.0)] * 3, (CROWDED, 100), *[(1.0, 10.0)] * 6, (QUIET, 5), (QUIET, 5)
    )
    # after 30 ms with one thread a trial, which fails; after 60 ms another, which stays
    assert counts == [2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 2]
