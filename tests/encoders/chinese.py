"""Small checkpoints of the Chinese profile's architectures, as their publishers' folders hold them, and a profile that names them."""

import json
from pathlib import Path

import torch

from encoders.weights import quiet

TITLES = {
    "sparrow": "麻雀在树上唱歌",
    "tractor": "农场里的红色拖拉机",
    "violin": "四根弦的木制小提琴",
    "whale": "蓝鲸是最大的动物",
}
# What the small tokenizers know: a catalogue of other words would be [UNK] to them.
CHARACTERS = sorted({character for title in TITLES.values() for character in title})


def save_profile(folder):
    """Three folders and `zh.yaml` beside them; returns the file."""
    torch.manual_seed(0)
    save_bert(folder / "bert-base-chinese")
    save_clip(folder / "clip-xlm-roberta")
    save_wav2vec2(folder / "wav2vec2-xlsr")
    profile = folder / "zh.yaml"
    profile.write_text("text: bert-base-chinese\nimage: clip-xlm-roberta\naudio: wav2vec2-xlsr\n")
    return profile


def save_bert(folder: Path):
    """BERT with a WordPiece vocabulary of single characters, as bert-base-chinese has."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)


def save_clip(folder: Path):
    """An open_clip CustomTextCLIP whose text tower is an XLM-RoBERTa with a sentencepiece-like (unigram) tokenizer."""
    from open_clip.model import CustomTextCLIP
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *CHARACTERS]
    unigram = Tokenizer(models.Unigram([(piece, -2.0) for piece in pieces], unk_id=3))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>", **names)
    tokenizer.save_pretrained(folder)
    XLMRobertaConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=80, pad_token_id=1,
    ).save_pretrained(folder)  # fmt: skip
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"hf_model_name": "xlm-roberta-base", "hf_tokenizer_name": "xlm-roberta-base",
                     "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear", "context_length": 24},
    }  # fmt: skip
    with quiet():
        text_cfg = {**config["text_cfg"], "hf_model_name": str(folder), "hf_model_pretrained": False}
        model = CustomTextCLIP(**{**config, "text_cfg": text_cfg})
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))


def save_wav2vec2(folder: Path):
    """A wav2vec 2.0 of the large kind (layer norm, stable), as XLSR-53 is."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16, 16, 16),
        conv_kernel=(10, 8, 4), conv_stride=(5, 8, 8), num_feat_extract_layers=3, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True,
    )  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
