"""What a run reports: lines of log.jsonl, loggers, warnings, the plot of the loss."""
import importlib.util
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import support.training.log as training_log
import tiny
from support import common
from support.common import UserError
from support.training.log import (
    Logger,
    NaNGuard,
    is_untrained_loss,
    moving_average,
    open_loggers,
    plot_loss,
    print_summary,
    read_log,
    read_validations,
    warn_if_untrained,
)

# ---- log.jsonl -----------------------------------------------------------------------------------

def make_logger(tmp_path, every=2, **more):
    return Logger(tmp_path / "out" / "log.jsonl", tiny.skyeye(), tune="full", train_vit=False,
                  every=every, peak_flops=1e6, **more)


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]


def make_batch(rows=5, pictures=0, segments=None):
    batch = {"ids": torch.ones(rows, 3), "images": torch.zeros(pictures, 1) if pictures else None}
    return batch | ({} if segments is None else {"segments": segments})


@pytest.fixture
def flops(monkeypatch):
    """Six billion a row."""
    monkeypatch.setattr(training_log, "count_flops",
                        lambda config, batch, tune, train_vit: 6e9 * len(batch["ids"]))


def test_the_flops_of_this_process_are_reported_and_their_part_of_the_peak(
        tmp_path, monkeypatch, flops):
    monkeypatch.setattr(training_log, "get_world_size", lambda: 3)
    log = make_logger(tmp_path)
    for step in (1, 2, 3, 4):
        shown = log.add(step, loss=0.5, lr=0.1, norm=2.0, batches=[make_batch()] * 2)
    row = lines(tmp_path)[-1]
    flops_per_second = 6e9 * row["samples_per_s"] / 3               # of one process in three
    assert row["step"] == 4 and row["tflops"] == pytest.approx(flops_per_second / 1e12, rel=1e-3)
    assert row["mfu"] == pytest.approx(flops_per_second / 1e6, rel=1e-3)
    assert shown.endswith(f"mfu {row['mfu']:.0%}")


def test_the_first_every_nth_and_the_last_step_make_a_line_and_a_skipped_one_another(tmp_path,
                                                                                     flops):
    log = make_logger(tmp_path, every=3, max_steps=7)
    for step in range(1, 8):
        log.add(step, loss=math.nan if step == 5 else 0.5, lr=0.1, norm=2.0,
                batches=[make_batch()], skipped_rows=["a.json: 3"] if step == 5 else ())
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [1, 3, 5, 6, 7]
    assert list(rows[0]) == ["step", "loss", "lr", "norm", "samples_per_s", "tokens_per_s",
                             "tflops", "mfu", "pictures_per_step"]
    assert math.isnan(rows[2].pop("loss")) and rows[2] == {
        "step": 5, "skipped": True, "norm": 2.0, "rows": ["a.json: 3"]}


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_file_gets_the_loss_in_lines_and_a_terminal_a_progress_bar(
        tmp_path, flops, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    log = make_logger(tmp_path, every=1000, max_steps=2000)
    for step in (1, 2, 1000):
        log.add(step, loss=0.5, lr=0.1, norm=2.0, batches=[make_batch()])
    printed = capsys.readouterr().err.splitlines()
    assert [line.partition(" lr ")[0] for line in printed] == [] if terminal else [
        "step 1 of 2,000: loss 0.500", "step 1,000 of 2,000: loss 0.500"]


def test_held_out_rows_are_a_line_whose_time_does_not_slow_the_training(tmp_path, flops, capsys):
    log = make_logger(tmp_path, every=1)

    def measure():
        time.sleep(1.0)
        return {"val_loss": 1.5, "val_exact": 0.25, "val_rows": 4}
    log.add_validation(1, measure)
    log.add(1, loss=0.5, lr=0.1, norm=2.0, batches=[make_batch(5)])
    assert lines(tmp_path)[0] == {"step": 1, "val_loss": 1.5, "val_exact": 0.25, "val_rows": 4}
    assert lines(tmp_path)[1]["samples_per_s"] > 5 / 1.0
    assert capsys.readouterr().err.startswith(
        "step 1: held out (4 rows): loss 1.500, exact match 25.0 %\n")
    file = tmp_path / "out/log.jsonl"
    assert read_validations(file) == [(1, lines(tmp_path)[0])] and len(read_log(file)[0]) == 1


def test_samples_are_questions_where_rows_share_them_and_pictures_are_a_mean(tmp_path, flops):
    log = make_logger(tmp_path, every=2)
    segments = torch.tensor([[0, 1, 2], [0, 1, -1], [0, 0, 0]])     # 2, 1 and at least 1
    log.add(1, loss=0.5, lr=0.1, norm=2.0, batches=[make_batch()])
    log.add(2, loss=0.5, lr=0.1, norm=2.0, batches=[make_batch(3, 3, segments), make_batch(2)])
    log.add(3, loss=0.5, lr=0.1, norm=2.0, batches=[make_batch(3, 3, segments), make_batch(2)])
    log.add(4, loss=0.5, lr=0.1, norm=2.0, batches=[make_batch(1, 1)])
    row = lines(tmp_path)[-1]
    assert row["pictures_per_step"] == 2.0                          # 3 and 1
    assert row["tokens_per_s"] / row["samples_per_s"] == pytest.approx(18 / 7, rel=0.01)


def test_loggers_get_the_numbers_of_every_line(tmp_path, flops):
    received = []
    log = make_logger(tmp_path, loggers=[lambda step, numbers: received.append((step, numbers))])
    for step in (1, 2):
        log.add(step, loss=0.5, lr=0.1, norm=2.0, batches=[make_batch()])
    for (step, numbers), row in zip(received, lines(tmp_path), strict=True):
        assert row == {"step": step} | numbers


def test_a_logger_whose_package_is_missing_is_refused_before_any_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(training_log, "LOGGERS", {"json": lambda *_: pytest.fail("opened")})
    with pytest.raises(UserError, match="--log_to abacus: .* not installed; pip install abacus"):
        open_loggers(["json", "abacus"], tmp_path, {})


def test_a_log_that_cannot_be_written_is_told_once_and_the_training_goes_on(tmp_path, capsys):
    log = make_logger(tmp_path)
    log.file.close()
    log.file = open("/dev/full", "ab", buffering=0)
    for step in (1, 2):
        log.write({"step": step, "loss": 1.0})
    log.file.close()
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_the_summary_counts_parameters_samples_and_rows(tmp_path, capsys):
    model = tiny.skyeye()
    model.requires_grad_(False)
    model.llama_proj.requires_grad_(True)
    dataset = tiny.rows(tiny.captions(tmp_path, 4))
    print_summary(model, dataset, 1, "projector", "cpu", torch.bfloat16)
    first, second = capsys.readouterr().err.splitlines()
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.llama_proj.parameters())
    assert f"{trained:,} of {count:,} parameters" in first and first.endswith("cpu in bfloat16")
    assert second.startswith("4 samples in 4 rows an epoch")


# ---- losses that warn ----------------------------------------------------------------------------

def test_three_skipped_steps_in_a_row_end_the_run_with_the_checkpoint_to_resume_from():
    guard = NaNGuard()
    for step, skipped in enumerate([True, True, False, True, True], start=1):
        guard.check(step, skipped, None)
    with pytest.raises(UserError, match="step 6: 3 steps in a row.*out/checkpoint-40.*--lr"):
        guard.check(6, True, Path("out/checkpoint-40"))
    with pytest.raises(UserError, match="no checkpoint yet"):
        guard.check(7, True, None)


@pytest.mark.parametrize("part, untrained", [(0.97, 0), (0.99, 1), (1.019, 1), (1.03, 0)])
def test_a_uniform_guess_is_a_loss_within_two_percent_of_the_logarithm(part, untrained, capsys):
    assert is_untrained_loss(math.log(32_000) * part, 32_000) == untrained
    warn_if_untrained(math.log(tiny.VOCAB) * part, tiny.skyeye())
    assert ("is the model trained?" in capsys.readouterr().err) == untrained


# ---- loss.png ------------------------------------------------------------------------------------

def write_log(file, rows, end=""):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return file


def test_of_repeated_steps_the_last_counts_and_broken_lines_do_not(tmp_path):
    rows = [{"step": 1, "loss": 5, "lr": 1}, {"step": 2, "loss": 4, "lr": 1}, {"commit": "abc"},
            {"step": 3, "loss": math.nan, "lr": 1}, {"step": 2, "loss": 3, "lr": 2}]
    foreign = '7\n{"step": 1e999, "loss": 1}\n{"step": 1' + "0" * 400 + ', "loss": 1}\n'
    foreign += "[" * 100_000 + '\n{"step": 4, "lo'
    steps, losses, rates = read_log(write_log(tmp_path / "log.jsonl", rows, foreign))
    assert (steps.tolist(), losses.tolist(), rates.tolist()) == ([1, 2], [5, 3], [1, 2])


def test_the_moving_average_is_of_the_neighbors():
    assert moving_average(np.array([1.0, 2.0, 6.0, 1.0])).tolist() == [1.5, 3.0, 3.0, 3.5]


def near(picture, color, x, y, reach=3):
    """Is there a pixel of about that color within `reach` pixels?"""
    wanted = [int(color[i:i + 2], 16) for i in (1, 3, 5)]
    x, y = round(x), round(y)
    part = picture[y - reach:y + reach + 1, x - reach:x + reach + 1].astype(int)
    return bool((np.abs(part - wanted).max(-1) < 60).any())


def test_the_curves_lie_where_the_numbers_are(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *args, save=figure.Figure.savefig,
                        **more: (drawn.append(self), save(self, *args, **more)))
    rows = [{"step": s, "loss": 8 - s / 200, "lr": 1e-3 * s / 1000} for s in range(0, 1001, 10)]
    plot_loss(write_log(tmp_path / "log.jsonl", rows), tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (1000, 500) and image.format == "PNG"
        picture = np.asarray(image.convert("RGB"))
    left, right = drawn[0].axes
    for axes, name, curve in ((left, "moving average", lambda s: 8 - s / 200),
                              (right, "learning rate", lambda s: 1e-3 * s / 1000)):
        [line] = [line for line in axes.lines if line.get_label() == name]
        for s in range(100, 1000, 100):
            x, y = axes.transData.transform((s, curve(s)))
            assert near(picture, line.get_color(), x, 500 - y)
            assert not near(picture, line.get_color(), x, 500 - y - 25)
    assert [left.get_xlabel(), left.get_ylabel(), right.get_ylabel()] == [
        "step", "loss", "learning rate"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "loss", "moving average", "learning rate"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "loss.png"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_lines_are_drawn_too(count, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"step": s, "loss": 2.0, "lr": 0.0} for s in range(count)]
    plot_loss(write_log(tmp_path / "log.jsonl", rows), tmp_path / "loss.png")
    picture = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB"))
    assert near(picture, "#1f5fa8", 500, 250, 100)


def test_a_log_without_a_loss_is_an_error_that_names_it(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="log.jsonl: no line"):
        plot_loss(write_log(tmp_path / "log.jsonl", []), tmp_path / "loss.png")


def test_without_matplotlib_a_line_says_how_to_get_the_plot(tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(common, "find_spec",
                        lambda name: None if name == "matplotlib" else find_spec(name))
    log = write_log(tmp_path / "log.jsonl", [{"step": 1, "loss": 2.0, "lr": 0.1}])
    plot_loss(log, tmp_path / "loss.png")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("pip install matplotlib") and "loss.png" in line and str(log) in line
    assert not (tmp_path / "loss.png").exists()


def test_a_run_imports_matplotlib_only_to_draw():
    code = "import sys, support.training.log; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT).returncode == 0
