import threading

import numpy as np
import pytest
import torch

from encoders import AudioEncoder, ImageEncoder, TextEncoder
from encoders.bulk import encode_stream
from tests.encoders.media_files import noise_picture, tone

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA GPU here: the GPU's code paths were not run"
)
TEXTS = ["a red bird", "stone", "a blue bird sings : a red stone", "bird " * 30] * 40


@pytest.fixture(scope="module")
def cases(bert_folder, clip_folder, wav2vec2_folder):
    pictures = [noise_picture(seed, (40 + seed, 50)) for seed in range(40)]
    clips = [tone(0.2 + 0.1 * (number % 5), hertz=100 + 10 * number) for number in range(40)]
    return [
        (TextEncoder, bert_folder, TEXTS),
        (ImageEncoder, clip_folder, pictures),
        (AudioEncoder, wav2vec2_folder, clips),
    ]


def test_auto_is_the_gpu_in_bfloat16(cases):
    """Where there is a GPU, `auto` takes it."""
    for kind, folder, _ in cases:
        assert (kind(folder).compute.device, kind(folder).compute.dtype) == ("cuda", "bfloat16")


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99999), ("bfloat16", 0.999), ("float16", 0.999)])
def test_the_gpu_gives_the_cpus_vectors(cases, dtype, least):
    """In each precision, one by one and in bulk, with batches in flight."""
    for kind, folder, items in cases:
        expected = kind(folder, device="cpu", dtype="float32").encode(items)
        encoder = kind(folder, device="cuda", dtype=dtype)
        assert (encoder.encode(items) * expected).sum(1).min() > least
        bulk = np.stack(list(encode_stream(encoder, items, lambda item: item)))
        assert (bulk * expected).sum(1).min() > least


def test_queries_and_compiled_models_agree_too(cases, bert_folder, clip_folder):
    """CLIP's text tower, and packed texts, on the GPU."""
    words = ["a red bird", "stone"]
    expected = ImageEncoder(clip_folder, device="cpu", dtype="float32").encode_query(words)
    assert (ImageEncoder(clip_folder, device="cuda").encode_query(words) * expected).sum(1).min() > 0.999
    expected = TextEncoder(bert_folder, device="cpu", dtype="float32").encode(TEXTS)
    got = TextEncoder(bert_folder, device="cuda", compile=True).encode(TEXTS)
    assert (got * expected).sum(1).min() > 0.999


def test_a_stream_that_is_left_frees_its_threads(bert_folder):
    """Closing a stream with launched batches in flight waits for them."""
    before = threading.active_count()
    stream = encode_stream(TextEncoder(bert_folder, device="cuda"), TEXTS, str, window=8)
    next(stream)
    stream.close()
    assert threading.active_count() == before
