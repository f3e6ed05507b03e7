"""Tiny random models for the census: one of any type that transformers has, saved with its reference's logits."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import traceback
from pathlib import Path

from census_settings import SMALL, SMALL_VISION, SPECIAL

SHORT, LONG, TOLERANCE = 12, 60, 1e-5
_DROPPED = (
    (),
    ("num_key_value_heads",),
    ("head_dim", "swa_head_dim"),
    ("head_dim", "num_key_value_heads", "num_kv_heads"),
    ("num_experts", "n_group", "topk_group"),
    ("layer_types", "num_kv_shared_layers", "pad_token_id"),
)


def tiny_settings(cls, vision=False, drop=(), **more):
    """The generic settings a config class has fields for, nested configs included."""
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set(cls().to_dict())
    small = SMALL_VISION if vision else SMALL
    settings = {k: v for k, v in small.items() if k in fields and k not in drop}
    if "use_qk_norm" in settings and cls.model_type == "llama4_text":
        settings["use_qk_norm"] = True
    for name, sub in (getattr(cls, "sub_configs", None) or {}).items():
        if name not in fields:
            continue
        seeing = not name.startswith(("text", "decoder", "llm", "thinker"))
        try:
            if sub.__name__ == "AutoConfig":
                sub = type(getattr(cls(), name))
            mine = {} if seeing else SPECIAL.get(getattr(sub, "model_type", ""), {})
            settings[name] = clean({**tiny_settings(sub, vision=seeing), **mine})
        except Exception:
            continue
    settings.update(more)
    return settings


def clean(settings):
    return {k: v for k, v in settings.items() if v is not None}


def attempts(cls, special):
    """Settings to try, from the most to the least demanding."""
    for drop in _DROPPED:
        settings = tiny_settings(cls, drop=drop)
        for name, value in special.items():
            settings.pop(name, None)
            # None takes the generic setting away, except where the field has no generic one: there it is a value.
            if value is not None or name not in SMALL or name == "sliding_window":
                settings[name] = value
        yield settings
    settings = tiny_settings(cls)
    settings = {k: v for k, v in settings.items() if k not in ("head_dim", "num_key_value_heads")}
    yield {**settings, **clean(special), "num_key_value_heads": 4} if hasattr(cls, "num_key_value_heads") else settings


def randomise(model, seed=0):
    """Every stored number random, so that none can be lost unseen; sizes such that logits stay of order one."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def noise(x):
        return torch.randn(x.shape, generator=generator).to(x.dtype)

    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            if p.dim() < 2 or re.search(r"A_log|dt_bias|conv1d|decay|time_|sinks|\.D$|lambda", name):
                p.add_(0.2 * noise(p))
            elif id(p) in embeddings:
                p.copy_(0.7 * noise(p))
            else:
                fan = p.shape[-1] if p.dim() == 2 else min(p.shape[-1], p.shape[-2])
                p.copy_(noise(p) / math.sqrt(max(fan, 1)))
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is None or not buffer.is_floating_point() or name in module._non_persistent_buffers_set:
                    continue
                if re.search(r"inv_freq|mean|std|position|mask|alpha|softcap|scale_base|slope_rate|_decay$", name):
                    continue
                buffer.add_(0.1 * noise(buffer))


def tokenizer_file(directory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    vocab = {t: i for i, t in enumerate(special + letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "pad_token": "<pad>",
            }
        )
    )


def rows(seed=1):
    import torch

    generator = torch.Generator().manual_seed(seed)
    top = 259
    return [torch.randint(3, top, (n,), generator=generator).tolist() for n in (SHORT, LONG)]


def run(model, ids):
    import torch

    with torch.no_grad():
        try:
            out = model(input_ids=torch.tensor([ids]), use_cache=False)
        except TypeError:
            out = model(input_ids=torch.tensor([ids]))
    return out.logits[0].float()


def build(model_type, extra, directory):
    """Saves a tiny model; returns (settings used, reference logits, parameter count, notes)."""
    import torch
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    cls = CONFIG_MAPPING[model_type]
    after = extra.pop("+json", None)
    shard, kept, body = extra.pop("+shard", "5GB"), extra.pop("+dtype", None), extra.pop("+body", False)
    special = {**SPECIAL.get(model_type, {}), **extra}
    errors, notes = [], []
    for settings in attempts(cls, special):
        try:
            config = cls(**copy.deepcopy(settings))
            torch.manual_seed(0)
            model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            if isinstance(model_class, (tuple, list)):
                model_class = model_class[0]
            if "text_config" in (getattr(cls, "sub_configs", None) or {}) and model_class.config_class is not cls:
                # What such a checkpoint really holds: the text part inside a model that also sees.
                model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[cls]
            try:
                config._attn_implementation = "eager"
                model = model_class(config)
            except ValueError:
                config._attn_implementation = None
                model = model_class(config)
            model = model.float().eval()
            count = sum(p.numel() for p in model.parameters())
            if count > 60_000_000:
                raise ValueError(f"{count:,} parameters is not tiny")
            randomise(model)
            memory = [run(model, ids) for ids in rows()]
            break
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0][:200]
            errors.append(f"{type(error).__name__}: {said}{where(error)}")
    else:
        raise RuntimeError(" | ".join(dict.fromkeys(errors)))
    if kept:
        model = model.to(getattr(torch, kept))
        memory = [run(copy.deepcopy(model).float(), ids) for ids in rows()]
    (model.base_model if body else model).save_pretrained(directory, max_shard_size=shard)
    tokenizer_file(directory)
    if after:
        path = directory / "config.json"
        stored = json.loads(path.read_text())
        stored.update(after)
        path.write_text(json.dumps({k: v for k, v in stored.items() if v is not None or k not in after}, indent=1))
    try:
        again = model_class.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    except ValueError:
        again = model_class.from_pretrained(directory, dtype=torch.float32)
    again = again.float().eval()
    reference = [run(again, ids) for ids in rows()]
    drift = max(difference(a, b) for a, b in zip(memory, reference, strict=True))
    if drift > TOLERANCE and not after:
        notes.append(f"saved and loaded again by transformers it differs by {drift:.1e}")
    if not all(torch.isfinite(r).all() for r in reference):
        raise RuntimeError("the reference's logits are not finite")
    torch.save(reference, directory / "reference.pt")
    return settings, reference, count, notes


def where(error):
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def difference(ours, theirs):
    if ours.shape != theirs.shape:
        return math.inf
    return float((ours - theirs).abs().max() / theirs.abs().max())
