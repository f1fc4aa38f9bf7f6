import torch

from encoders import ImageEncoder, TextEncoder
from encoders.rewritten import rewritten_text, rewritten_tower, twin_of


def test_a_twin_shares_the_weights():
    """Rewriting costs no memory, and leaves the model's own modules as they are."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    twin = twin_of(model)
    twin[0] = torch.nn.Identity()
    assert isinstance(model[0], torch.nn.Linear)
    assert twin[1].weight is model[1].weight
    assert twin[1].running_mean is model[1].running_mean


def test_a_rewritten_tower_gives_the_same_vectors(clip_folder):
    """Patches, attention and the last block in another form: the same rows but for rounding."""
    tower = ImageEncoder(clip_folder, dtype="float32")._model.visual
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(rewritten_tower(tower)(pixels), tower(pixels), rtol=1e-4, atol=1e-5)


def test_nothing_of_a_vision_transformer_is_left_as_it_was(clip_folder):
    """Its convolution and every attention are rewritten."""
    twin = rewritten_tower(ImageEncoder(clip_folder, dtype="float32")._model.visual)
    kinds = {type(module).__name__ for module in twin.modules()}
    assert {"LastBlock", "Patches"} <= kinds
    assert not any(
        module.__class__ is torch.nn.MultiheadAttention
        for block in twin.transformer.resblocks[:-1]
        for module in block.modules()
    )


def test_a_tower_of_another_make_stays_as_it_is(bundled):
    """EfficientNet has neither: its twin gives exactly the same vectors."""
    tower = bundled.image._model.visual
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(rewritten_tower(tower)(pixels), tower(pixels))


def test_a_rewritten_text_model_attends_where_it_may(bert_folder):
    """With a mask by text, the same hidden states as the model's own attention."""
    model = TextEncoder(bert_folder, dtype="float32")._model
    ids = torch.arange(24).reshape(2, 12) % 14
    texts = torch.tensor([[1] * 5 + [2] * 7, [3] * 9 + [0] * 3])
    own = texts[:, None, :, None] == texts[:, None, None, :]
    with torch.inference_mode():
        ours = rewritten_text(model)(input_ids=ids, attention_mask=own).last_hidden_state
        theirs = model(input_ids=ids, attention_mask=own).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"
