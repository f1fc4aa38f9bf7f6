"""Models of production size with random weights, written as the folders that encoders and their peers read.

Speed does not depend on what weights hold, and no model hub is needed. The CLIP is written twice with the same weights: for
`open_clip`, and for the peers that read transformers' form.
"""

import json
from pathlib import Path
from typing import Any, Final

SEED: Final = 11
CLIP_NAME: Final = "ViT-B-32"


def bert_base(folder: Path) -> Path:
    """BERT-base (110 M parameters, 768-d, 12 layers) with MiniLM's WordPiece vocabulary of 30,522."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from encoders.bundled.packages import minilm_folder

    torch.manual_seed(SEED)
    BertModel(BertConfig(), add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)
    return folder


def wav2vec2_base(folder: Path) -> Path:
    """wav2vec2-base (94 M parameters, 768-d, 12 layers, group norm over time)."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(SEED)
    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def clip_vit_b_32(folder: Path) -> Path:
    """open_clip's ViT-B/32 at 224 pixels (151 M parameters with its text tower, 512-d)."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(SEED)
    model = open_clip.create_model(CLIP_NAME)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    config = {"model_cfg": open_clip.get_model_config(CLIP_NAME), "preprocess_cfg": dict(model.visual.preprocess_cfg)}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def clip_for_transformers(source: Path, folder: Path) -> Path:
    """The image tower of `clip_vit_b_32` as transformers' `CLIPModel` with its processor; the text tower is left random."""
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(SEED)
    # GELU as open_clip has it; OpenAI's own weights used an approximation.
    model = CLIPModel(CLIPConfig(text_config={"hidden_act": "gelu"}, vision_config={"hidden_act": "gelu"}))
    theirs = load_file(source / "open_clip_model.safetensors")
    report = model.load_state_dict(renamed_image_tower(theirs), strict=False)
    if wrong := [
        name for name in (*report.missing_keys, *report.unexpected_keys) if "text" not in name and name != "logit_scale"
    ]:
        raise RuntimeError(f"the image tower was not carried over: {wrong[:3]}")
    model.save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


def renamed_image_tower(theirs: dict[str, Any]) -> dict[str, Any]:
    """open_clip's image tower under transformers' names; the fused q, k, v projection is split, the last one transposed."""
    ours = {
        "vision_model.embeddings.class_embedding": theirs["visual.class_embedding"],
        "vision_model.embeddings.position_embedding.weight": theirs["visual.positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": theirs["visual.conv1.weight"],
        "visual_projection.weight": theirs["visual.proj"].T.contiguous(),
    }
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    for new, old in norms.items():
        ours |= {f"{new}.{kind}": theirs[f"{old}.{kind}"] for kind in ("weight", "bias")}
    for layer in range(12):
        ours |= renamed_block(theirs, f"visual.transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}")
    return ours


def renamed_block(theirs: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """One Transformer block's tensors under transformers' names."""
    same = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    block = {
        f"{new}.{to}.{kind}": theirs[f"{old}.{of}.{kind}"] for of, to in same.items() for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        fused = theirs[f"{old}.attn.in_proj_{kind}"].chunk(3)
        block |= {
            f"{new}.self_attn.{name}.{kind}": part.contiguous()
            for name, part in zip(("q_proj", "k_proj", "v_proj"), fused, strict=True)
        }
    return block
