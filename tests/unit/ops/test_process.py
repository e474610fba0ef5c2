"""The process's figures."""

import gc
from pathlib import Path

import pytest

from kyogo_broker.ops import process
from kyogo_broker.ops.process import GC_THRESHOLDS, Process, settle_garbage, tune_memory


def test_memory_is_high_above_the_limit_only() -> None:
    assert Process(memory_limit_bytes=1).memory_high()
    assert not Process(memory_limit_bytes=1 << 60).memory_high()
    assert Process().memory_limit_bytes > 1 << 28


def test_free_memory_in_pieces_is_given_back_before_publishes_are_refused() -> None:
    """Each second small block stays: what is free between them cannot go by itself."""
    tune_memory()
    process = Process(memory_limit_bytes=1 << 60)
    before = process.rss_bytes()
    blocks = [bytes(100_000) for _ in range(1_000)]
    kept = blocks[::2]
    del blocks
    process.memory_limit_bytes = before + len(kept) * 100_000 * 5 // 4
    assert process.rss_bytes() > process.memory_limit_bytes
    assert not process.memory_high()
    process.memory_limit_bytes = before
    assert process.memory_high()
    assert len(kept) == 500


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "memory.max"
    monkeypatch.setattr(process, "_CGROUP_LIMIT", file)
    whole = Process().memory_limit_bytes
    file.write_text("max\n")
    assert Process().memory_limit_bytes == whole
    file.write_text(f"{1 << 20}\n")
    assert Process().memory_limit_bytes == (1 << 20) * 3 // 4


def test_tuning_does_no_harm() -> None:
    before = gc.get_threshold()
    try:
        tune_memory()
        settle_garbage()
        assert gc.get_threshold() == GC_THRESHOLDS
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
