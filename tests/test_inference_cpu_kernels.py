"""Packed weights compute what the plain ones do, and without their kernels everything works."""
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import support.inference.cpu_kernels as packing
import tiny
from llama import Llama, LlamaConfig
from projector import SkyEyeGPT
from support.checkpoints.files import ModelError
from support.inference.cpu_kernels import (
    Int4Weight,
    Int8Weight,
    OneDNNWeight,
    PackedWeight,
    RowSlice,
    ThreadSplitWeight,
    find_kernel,
    pack_for_cpu,
)
from support.inference.generation import generate
from support.inference.quantization import QuantizedTensor, quantize

EVEN = LlamaConfig(vocab_size=61, width=128, depth=3, heads=4, mlp_width=192, max_positions=64)
VNNI, AVX512 = torch.cpu._is_vnni_supported(), torch.cpu._is_avx512_supported()
KERNELS = {16: OneDNNWeight, 8: Int8Weight if VNNI else QuantizedTensor,
           4: Int4Weight if AVX512 else QuantizedTensor}


@pytest.fixture(autouse=True)
def pack_also_what_is_small(monkeypatch):
    monkeypatch.setattr(packing, "MIN_NUMEL", 0)
    monkeypatch.setattr(packing, "NARROW_SIDE", 0)


@pytest.fixture(params=[0, 4096], ids=["blocks", "strips"])
def narrow(request, monkeypatch):
    monkeypatch.setattr(packing, "NARROW_SIDE", request.param)


def model(bits=16, dtype=torch.float32, packed=False):
    made = tiny.randomize(Llama(EVEN)).to(dtype).requires_grad_(False)
    for layer in made.model.layers if bits < 16 else ():
        for part in (*layer.self_attn.children(), *layer.mlp.children()):
            part.weight = torch.nn.Parameter(quantize(part.weight, bits), requires_grad=False)
    return pack_for_cpu(made) if packed else made


def answers(llama, rows, new=9):
    """The greedy answers to prompts of these lengths, and the logits of all they hold."""
    ids = [tiny.ids(1, length, seed=length)[0] for length in rows]
    x = llama.model.embed_tokens(torch.nn.utils.rnn.pad_sequence(ids, batch_first=True))
    lengths = torch.tensor(rows)
    cache = llama.new_cache(len(rows), max(rows) + new)
    return torch.stack(list(generate(llama, x, lengths, cache, new, stop=-1)), dim=1)


def distance(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def kernels(llama):
    """The kinds of weight under the linear layers, by name of kernel."""
    weights = [m.weight for m in llama.modules() if isinstance(m, torch.nn.Linear)]
    found = [w.kernel if isinstance(w, PackedWeight) else w for w in weights]
    return {type(k.kernel if isinstance(k, RowSlice) else k) for k in found}


def test_packed_weights_compute_the_same(narrow):
    ids = tiny.ids(2, 11)
    with torch.no_grad():
        torch.testing.assert_close(model(packed=True)(ids), model()(ids), atol=1e-5, rtol=1e-5)
    assert answers(model(packed=True), (5,)).equal(answers(model(), (5,)))


def test_a_picture_and_its_answer_are_the_same_with_packed_weights(narrow):
    ids, pictures = tiny.ids(1, 20, tiny.VOCAB), tiny.images(1)
    ids[0, 2:2 + tiny.N] = -1
    with torch.no_grad():
        plain, packed = tiny.skyeye(), pack_for_cpu(tiny.skyeye())
        assert any(isinstance(p, PackedWeight) for p in packed.visual_encoder.parameters())
        logits, wanted = packed(ids, pictures), plain(ids, pictures)
        torch.testing.assert_close(logits, wanted, atol=2e-5, rtol=1e-4)
        answers = [list(model.generate(ids[0], pictures, 8)) for model in (packed, plain)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_packed_rows_of_different_lengths_answer_as_each_alone(bits, narrow):
    llama = model(bits, packed=True)
    together = answers(llama, (5, 9, 3))
    assert together.equal(torch.cat([answers(llama, (length,)) for length in (5, 9, 3)]))


@pytest.mark.parametrize(("bits", "tolerance"), [(16, 1e-5), (8, 3e-2), (4, 1e-2)])
def test_a_packed_model_with_a_cache_computes_what_it_computes_without(bits, tolerance):
    llama, ids = model(bits, packed=True), tiny.ids(1, 13)
    with torch.inference_mode():
        whole, cache = llama(ids), llama.new_cache(1, 13)
        parts = [llama(ids[:, :10], cache=cache)]
        parts += [llama(ids[:, [i]], torch.tensor([[i]]), cache=cache) for i in range(10, 13)]
    assert distance(torch.cat(parts, dim=1), whole) < tolerance


@pytest.mark.parametrize("packed", [False, True])
def test_in_bfloat16_the_cache_is_float32_and_costs_no_accuracy(packed):
    ids = tiny.ids(2, 13)
    exact, llama = model()(ids), model(dtype=torch.bfloat16, packed=packed)
    with torch.inference_mode():
        whole, cache = llama(ids), llama.new_cache(2, 13)
        parts = [llama(ids[:, :10], cache=cache)]
        parts += [llama(ids[:, [i]], torch.tensor([[i], [i]]), cache=cache) for i in range(10, 13)]
    assert cache.k.dtype == cache.v.dtype == torch.float32
    cached = torch.cat(parts, dim=1)
    assert cached.dtype == torch.bfloat16
    assert distance(cached, exact) < 1.1 * distance(whole, exact) < 4e-2


@pytest.mark.skipif(not VNNI or not AVX512, reason="a processor with AVX-512 and VNNI")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.012), (4, 0.005)])
@pytest.mark.parametrize("m", [192, 150])
def test_a_product_in_few_bits_is_near_the_product_with_the_same_float_weight(m, bits, tolerance,
                                                                              dtype):
    generator = torch.Generator().manual_seed(3)
    low = quantize(torch.randn(m, 160, generator=generator).to(dtype), bits)
    fast, bias = find_kernel(low), torch.randn(m, generator=generator).to(dtype)
    assert isinstance(fast, KERNELS[bits])
    # At 4 bits all is in bfloat16.
    assert distance(fast.dense(), low.dequantize()) <= (4e-3 if bits == 4 else 0)
    # One row of x is a thousand times the others: each is rounded in steps of its own.
    x = torch.randn(2, 3, 160, generator=generator).to(dtype)
    x[0, 1] *= 1000
    for one, other in zip(fast.linear(x, bias).flatten(0, 1),
                          F.linear(x, low.dequantize(), bias).flatten(0, 1), strict=True):
        assert distance(one, other) < tolerance
    many = torch.randn(70, 160, generator=generator).to(dtype)
    assert distance(fast.linear(many, None), F.linear(many, low.dequantize())) < tolerance


@pytest.mark.skipif(not VNNI, reason="8 bits need a processor with VNNI")
def test_at_8_bits_a_row_comes_out_the_same_to_the_bit_whatever_rows_are_with_it():
    x, fast = torch.randn(5, 160).abs(), find_kernel(quantize(torch.randn(96, 160), 8))
    x[2] *= -3
    assert fast.linear(x, None).equal(torch.cat([fast.linear(row[None], None) for row in x]))
    assert fast.linear(0 * x, None).eq(0).all()


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_every_linear_layer_is_packed(bits):
    assert kernels(model(bits, packed=True)) == {OneDNNWeight, KERNELS[bits]}


@pytest.mark.parametrize("gone", ["_reorder_linear_weight", "_linear_pointwise"])
def test_without_the_private_operators_weights_stay_as_they_are(monkeypatch, gone):
    class Without:
        def __getattr__(self, name):
            if name == gone:
                raise AttributeError(name)
            return getattr(torch.ops.mkldnn, name)

    monkeypatch.setattr("support.inference.cpu_kernels.mkldnn", Without())
    llama = model(packed=True)
    assert kernels(llama) == {torch.nn.Parameter}
    assert answers(llama, (5, 3)).equal(answers(model(), (5, 3)))


def test_a_processor_without_vnni_multiplies_8_bits_as_before(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert find_kernel(quantize(torch.randn(96, 160), 8)) is None


def test_a_weight_is_packed_as_its_shape_and_type_suit_or_not(monkeypatch):
    assert find_kernel(torch.randn(64, 64, dtype=torch.float64)) is None
    monkeypatch.undo()
    half, small = torch.randn(256, 256).bfloat16(), torch.randn(127, 256).bfloat16()
    assert isinstance(find_kernel(half), OneDNNWeight if AVX512 else type(None))
    assert find_kernel(small) is None
    wide, narrow, least = torch.randn(800, 800), torch.randn(900, 600), torch.randn(4, 6)
    assert isinstance(find_kernel(wide), OneDNNWeight)
    assert isinstance(find_kernel(least), ThreadSplitWeight)
    assert isinstance(find_kernel(narrow), ThreadSplitWeight)
    assert isinstance(find_kernel(narrow, rows=2), OneDNNWeight)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("shape", [(24, 10), (12, 30)])
def test_strips_multiply_as_the_weight_whatever_the_threads(shape, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    strips = ThreadSplitWeight(weight)
    assert len(strips.weight) == threads and strips.dense().equal(weight)
    for x in (torch.randn(shape[1]), torch.randn(3, shape[1]), torch.randn(2, 1, shape[1])):
        torch.testing.assert_close(strips.linear(x, bias), F.linear(x, weight, bias))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(packing, "NARROW_SIDE", 4096)
    assert isinstance(find_kernel(weight), OneDNNWeight)                  # no equal strips


def test_shapes_that_no_kernel_takes_stay_in_their_bits():
    assert find_kernel(quantize(torch.randn(96, 150), 4)) is None


def test_a_packed_model_keeps_its_names_and_numbers():
    plain, packed = model().state_dict(), model(packed=True).state_dict()
    assert packed.keys() == plain.keys()
    for name, tensor in packed.items():
        assert tensor.shape == plain[name].shape and tensor.dtype == plain[name].dtype
        assert (tensor + 0).equal(plain[name])


def test_a_packed_model_is_neither_trained_nor_saved(tmp_path):
    packed = pack_for_cpu(tiny.skyeye().requires_grad_(False))
    with pytest.raises(ModelError, match="packed for inference"):
        packed.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    x = torch.randn(1, 4, 50, requires_grad=True)
    with pytest.raises(ValueError, match="for inference"):
        packed.llama_model(x)


def test_a_saved_model_that_is_loaded_and_packed_answers_the_same(tmp_path):
    folder, ids = tiny.model_folder(tmp_path), tiny.ids(1, 9, tiny.VOCAB)[0]
    plain = list(SkyEyeGPT.from_pretrained(folder).generate(ids, None, 6))
    assert list(pack_for_cpu(SkyEyeGPT.from_pretrained(folder)).generate(ids, None, 6)) == plain


def test_without_the_file_everything_works_and_answers_the_same(tmp_path):
    """A copy of the project that lacks support/inference/cpu_kernels.py."""
    for name in ("support", "examples", "weights"):
        shutil.copytree(tiny.ROOT / name, tmp_path / name)
    for file in tiny.ROOT.glob("*.py"):
        shutil.copy(file, tmp_path)
    command = [sys.executable, "chat.py", "examples/parking.png", "--prompt",
               "[caption] briefly describe the image"]
    with_it = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (tmp_path / "support" / "inference" / "cpu_kernels.py").unlink()
    without = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert without.stdout == with_it.stdout != ""
    code = "import train, eval, chat, support.tools.convert, support.tools.check_data"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
