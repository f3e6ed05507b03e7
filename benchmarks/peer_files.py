"""The catalogue's SmolLM2 in other block formats, for the peers that read them: made once, in .bench/."""

from __future__ import annotations

from pathlib import Path

from common import ROOT, smollm2

FORMATS = ("Q4_0", "Q4_1", "Q8_0")


def gguf_in(kind: str) -> Path:
    """SmolLM2 with every block's matrices in `kind`; Q4_1 is the catalogue's own file.

    The others hold its dequantised weights, rounded again; the embedding stays Q8_0 as in the original.
    """
    source = smollm2()
    if kind == "Q4_1":
        return source
    place = ROOT / ".bench" / f"SmolLM2-135M-Instruct.{kind}.gguf"
    if place.exists():
        return place
    import gguf
    import torch

    from glassformer.generate.quantize import quantise

    place.parent.mkdir(exist_ok=True)
    reader = gguf.GGUFReader(source)
    partial = place.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, reader.fields["general.architecture"].contents())
    file_types = {"Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_file_type(file_types[kind])
    for tensor in reader.tensors:
        if tensor.tensor_type.name == "Q4_1":
            values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            data, stored = quantise(values, kind).numpy(), gguf.GGMLQuantizationType[kind]
        else:
            data, stored = tensor.data, tensor.tensor_type
        writer.add_tensor(tensor.name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(place)
    return place
