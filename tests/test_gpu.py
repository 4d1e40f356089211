"""tests/gpu.py runs whole at tiny sizes on a CPU, and goes on after what fails."""
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpu
import tiny

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
FIELDS = {"name", "value", "unit", "passed", "card", "commit", "seconds"}
CHECKS = {
    *(f"{part}, {dtype}: {what}" for part in ("ViT", "LLaMA", "LoRA", "MoE-LoRA")
      for dtype in ("fp32", "bf16", "fp16") for what in ("outputs", "gradients")),
    *(f"greedy tokens, {how}" for how in (
        "one by one", "a batch", "rows that end", "CUDA graph", "CUDA graph, a batch",
        "CUDA graph, rows that end", "--compile")),
    *(f"answers, {how}" for how in ("one by one", "answer_batch", "answer_batch, CUDA graph")),
    *(f"{bits} bits: {what}" for bits in (8, 4) for what in ("as on the CPU", "near 16")),
    *(f"packed rows, {count} questions: loss as of one a row" for count in (4, 12)),
    *(f"training step, {how}" for how in (
        "--tune full", "--tune lora", "--tune moe-lora", "--tune projector", "--tune full, bf16",
        "--tune lora, bf16", "--tune moe-lora, bf16", "--tune full, fp16", "--tune lora, fp16",
        "--grad_checkpoint", "--bits 8", "--bits 4", "--compile", "--shard, fp32",
        "--shard, bf16")),
    "resume, the same bits", "resume, weights that four steps left as they were",
    "chat.py, the CPU's answers",
}
MEASURED = {
    "ceiling: copy, bytes read and written": "GB/s",
    "ceiling: bf16 product of 512 x 512": "TFLOP/s",
    **{f"tiny, {bits} bits, batch {rows}, {how}: each further token": "ms" for bits, rows, how in (
        (16, 1, "CUDA graph"), (16, 1, "without a graph"), (16, 2, "CUDA graph"),
        (8, 1, "CUDA graph"), (4, 1, "CUDA graph"), (16, 1, "--compile"), (8, 1, "--compile"),
        (4, 1, "--compile"))},
    **{f"tiny, LoRA, batch {rows}{more}, ours: step": "s" for rows in (1, 2)
       for more in ("", ", --grad_checkpoint")},
    "tiny, 6 questions a picture, ours": "questions/s",
    "world: pictures rendered": "pictures/s",
    **{f"training, {run}: loss": "nats a token" for run in (
        "answers and boxes", "all tasks", "conversations")},
    "weights: size": "MB",
}


@pytest.fixture
def report(tmp_path):
    return gpu.Report(tmp_path / "results.jsonl", "cpu")


def children_seconds():
    """Of processor time: on one thread what it takes where nothing else runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_all_parts_run_at_tiny_sizes_on_a_cpu_in_under_three_minutes(tmp_path):
    out, start = tmp_path / "results" / "results.jsonl", children_seconds()
    done = subprocess.run([sys.executable, "tests/gpu.py", "--tiny", "--device", "cpu", "--out",
                           str(out)], cwd=tiny.ROOT, env=ENVIRONMENT, capture_output=True,
                          text=True, timeout=400)
    assert children_seconds() - start < 180
    rows = {row["name"]: row for row in lines(out)}
    assert [json.loads(line) for line in done.stdout.splitlines()] == list(rows.values())
    assert all(row.keys() >= FIELDS for row in rows.values())
    assert done.returncode == 0, [row for row in rows.values() if row["passed"] is False]
    # 1. Each check compares numbers
    for name in CHECKS:
        assert rows[name]["passed"] is True, rows[name]
        assert 0 <= rows[name]["value"] <= rows[name]["bound"] and rows[name]["compared"] > 1
    for name in ("LLaMA, bf16: gradients", "8 bits: near 16", "training step, --tune lora, fp16"):
        assert rows[name]["value"] > 0
    assert {name for name, row in rows.items() if "bound" in row} == CHECKS
    # 2. What is measured is a positive number
    for name, unit in MEASURED.items():
        assert rows[name]["value"] > 0 and rows[name]["unit"] == unit
    # 3. Nothing is left out without a reason
    reasons = {row["skipped"].split(";")[0] for row in rows.values() if "skipped" in row}
    assert reasons <= {"a CPU has nothing to wait for",
                       *(f"{package}: not installed" for package in (
                           "transformers", "peft", "transformers and peft"))}
    # 4. The trained weights are a model folder beside the results
    [folder] = out.parent.glob("nano-*")
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.model"}


def test_a_check_that_fails_is_reported_and_the_next_one_runs(report):
    def broken():
        raise RuntimeError("no kernel\nimage is available")

    report.run("broken", broken, 60)
    report.run("stopped", lambda: time.sleep(30), 1)
    report.run("left by an exit", lambda: sys.exit(2), 60)
    report.run("too late", broken, 0.5)
    report.run("different", lambda: report.check("different", 0.2, 0.1, "relative norm"), 60)
    report.run("not a number", lambda: report.check("not a number", float("nan"), 0.1, ""), 60)
    report.run("sound", lambda: report.check("sound", 0.1, 0.1, "relative norm"), 60)
    found = lines(Path(report.file.name))
    assert [row["passed"] for row in found] == [False, False, False, None, False, False, True]
    assert found[0]["error"] == "RuntimeError: no kernel image is available"
    assert found[1]["error"] == "TimeoutError: stopped after 1 s" and found[1]["seconds"] < 5
    assert found[3]["skipped"] == "no time was left"
    assert (found[4]["value"], found[4]["bound"]) == (0.2, 0.1)
    assert report.failed == 5


def test_wrong_numbers_on_the_device_are_found(report, tmp_path, monkeypatch):
    """The second call is the device's; here its outputs come at the wrong positions."""
    calls, right = [], gpu.outputs_and_gradients

    def wrong(*args):
        calls.append(args)
        y, grads = right(*args)
        return y.roll(len(calls) - 1, dims=1), grads

    monkeypatch.setattr(gpu, "outputs_and_gradients", wrong)
    gpu.check_numbers(gpu.Setup("cpu", True, tmp_path, tmp_path, report), "LLaMA", "bf16")
    outputs, gradients = lines(Path(report.file.name))
    assert outputs["passed"] is False and outputs["value"] > 1 and gradients["passed"] is True


def test_a_part_that_crashes_is_reported(report, tmp_path, monkeypatch):
    script = tmp_path / "crash.py"
    script.write_text("import os; os.abort()")
    monkeypatch.setattr(gpu, "__file__", str(script))
    gpu.run_apart("bench", gpu.GPUConfig(), 30, report)
    [row] = lines(Path(report.file.name))
    assert (row["name"], row["passed"], row["error"]) == ("bench", False, "exit code -6")
