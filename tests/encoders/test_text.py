import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders import TextEncoder
from encoders.errors import EncoderError, WeightsError

TEXTS = [
    "a red bird",
    "The quick brown fox jumps over the lazy dog, twice, and then once more for good measure.",
    "stone",
    " ".join(["a very long description of a thing"] * 60),
    "a red bird",
]
FIRST_VALUES = [
    [0.038320, 0.026350, -0.071966, 0.044936, 0.011664],
    [0.062584, 0.011647, 0.064621, 0.083129, -0.014971],
    [-0.011326, 0.063854, 0.010600, 0.041612, -0.108468],
]
TINY = {}


@pytest.fixture(scope="module")
def exact():
    """MiniLM in float32, since the reference is too."""
    return TextEncoder("bundled", device="cpu", dtype="float32")


def test_vectors_equal_those_of_sentence_transformers(exact):
    """MiniLM through this encoder is MiniLM through the library it was published for, cut-off at 256 tokens included."""
    from sentence_transformers import SentenceTransformer

    from encoders.bundled.packages import minilm_folder
    from encoders.weights import quiet

    with quiet():
        reference = SentenceTransformer(str(minilm_folder()), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert (exact.encode(TEXTS) * reference).sum(1).min() > 0.99999


def test_vectors_begin_as_the_reference_began(exact):
    """The first five numbers of three vectors, as sentence-transformers 5 gave them in float32."""
    np.testing.assert_allclose(exact.encode(TEXTS[:3])[:, :5], FIRST_VALUES, atol=1e-5)


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99999), ("bfloat16", 0.999)])
def test_vectors_equal_plain_transformers(dtype, least):
    """Whatever the batch and its padding, a vector is the mean of its own tokens in a float32 forward of that text alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from encoders.bundled.packages import minilm_folder
    from encoders.weights import quiet

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
        model = AutoModel.from_pretrained(minilm_folder(), dtype=torch.float32)
    got = TextEncoder("bundled", device="cpu", dtype=dtype).encode(TEXTS)
    for text, vector in zip(TEXTS, got, strict=True):
        with torch.inference_mode():
            inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            mean = model(**inputs).last_hidden_state[0].mean(0).numpy()
        assert vector @ mean / np.linalg.norm(mean) > least


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(["a", "red", "bird", "sings", "stone"]), min_size=1, max_size=45), min_size=1))
def test_batch_mates_and_order_change_nothing(bert_folder, words):
    """Any texts in any order: each has the vector that it has alone."""
    encoder = TINY.setdefault(bert_folder, TextEncoder(bert_folder, dtype="float32"))
    items = [" ".join(one) for one in words]
    together = encoder.encode(items)
    assert (together * encoder.encode(items[::-1])[::-1]).sum(1).min() > 0.99999
    assert together[0] @ encoder.encode(items[:1])[0] > 0.99999


@pytest.mark.parametrize(
    ("items", "complaint"),
    [("hello", r"must be a list, even of one: \['hello'\]"), ([None], "a text must be a str, not the NoneType None")],
)
def test_what_is_no_list_of_texts_is_refused(exact, items, complaint):
    """A text is a sequence too, of its letters."""
    with pytest.raises(EncoderError, match=complaint):
        exact.encode(items)


def test_an_empty_text_is_what_its_special_tokens_are(exact):
    """Of nothing the reference's vector comes out; cleaning, which comes before the encoder, refuses it with a reason."""
    from encoders.errors import MediaError
    from encoders.media import clean_text

    empty = exact.encode([""])
    exact.space.check(empty)
    assert empty[0] @ exact.encode(["stone"])[0] < 0.9
    with pytest.raises(MediaError, match="empty"):
        clean_text(" \n")


def test_order_is_kept_and_a_vector_does_not_depend_on_its_batch(exact):
    """Batches are sorted by length inside; outside nothing of it shows."""
    together = exact.encode(TEXTS)
    alone = np.concatenate([exact.encode([text]) for text in TEXTS])
    assert (together * alone).sum(1).min() > 0.999999
    np.testing.assert_array_equal(together[0], together[4])


def test_the_fast_precision_gives_the_same_space(exact):
    """bfloat16, which `auto` chooses where the CPU has it, agrees with float32."""
    fast = TextEncoder("bundled", device="cpu", dtype="bfloat16")
    assert fast.space == exact.space
    assert (fast.encode(TEXTS) * exact.encode(TEXTS)).sum(1).min() > 0.999


def test_meaning_is_near(exact):
    """A query finds the text that means the same in other words."""
    stored = exact.encode(["A bird is singing loudly.", "A stone lies in the road.", "Quarterly tax returns"])
    query = exact.encode_query(["noisy songbird"])
    assert (stored @ query[0]).argmax() == 0


def test_form_of_the_result(exact):
    """float32, contiguous, unit norm; nothing in, nothing out; progress adds up."""
    done = []
    vectors = exact.encode(TEXTS, progress=done.append)
    assert vectors.shape == (5, 384)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert sum(done) == 5
    exact.space.check(vectors)
    assert exact.encode([]).shape == (0, 384)


def test_a_local_folder_is_loaded(bert_folder):
    """Any BERT folder works, and gives what the model itself gives, averaged over its tokens."""
    import torch
    from transformers import AutoTokenizer, BertModel

    encoder = TextEncoder(bert_folder, dtype="float32")
    assert encoder.space.space_id.startswith("text_tiny_bert_")
    assert encoder.max_length == 40
    model, tokenizer = BertModel.from_pretrained(bert_folder), AutoTokenizer.from_pretrained(bert_folder)
    with torch.inference_mode():
        hidden = model(**tokenizer("a red bird sings", return_tensors="pt")).last_hidden_state[0]
    expected = hidden.mean(0).numpy()
    assert encoder.encode(["a red bird sings"])[0] @ expected / np.linalg.norm(expected) == pytest.approx(1, abs=1e-6)
    first = TextEncoder(bert_folder, dtype="float32", pooling="cls").encode(["a red bird sings"])[0]
    expected = hidden[0].numpy()
    assert first @ expected / np.linalg.norm(expected) == pytest.approx(1, abs=1e-6)


def test_template_and_query_prefix_word_the_two_sides(bert_folder):
    """The template words stored texts, the prefix words queries, and both are part of the space; braces in a text are text."""
    plain = TextEncoder(bert_folder, dtype="float32")
    worded = TextEncoder(bert_folder, dtype="float32", template="passage : {text}", query_prefix="query : ")
    assert worded.space.space_id != plain.space.space_id
    np.testing.assert_allclose(worded.encode(["bird"]), plain.encode(["passage : bird"]), atol=1e-6)
    np.testing.assert_allclose(worded.encode_query(["bird"]), plain.encode(["query : bird"]), atol=1e-6)
    assert np.isfinite(worded.encode(["{a} red {text}"])).all()


@pytest.mark.parametrize("wrong", [{"template": "no place"}, {"pooling": "max"}, {"device": "cpu", "dtype": "float8"}])
def test_options_that_make_no_sense_are_refused(bert_folder, wrong):
    """A wrong option is an error that names it."""
    with pytest.raises(EncoderError, match=str(next(reversed(wrong.values())))):
        TextEncoder(bert_folder, **wrong).encode(["a"])


def test_a_checkpoint_without_all_weights_is_refused(bert_folder, tmp_path):
    """Missing weights would be made up at random; the error names one."""
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(bert_folder, tmp_path / "torn")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 of the model's weights, such as 'encoder\.layer\.1"):
        TextEncoder(folder).encode(["a"])
