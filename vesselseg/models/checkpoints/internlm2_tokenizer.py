"""InternLM2's tokenizer, whose folder contains a sentencepiece file and Python code: read without that code.

`tokenizer.model` is a sentencepiece BPE model with byte fallback; tokenizer_config.json replaces some of its unused
pieces by chat tokens and appends further tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

from vesselseg.errors import WeightsError

CLASSES = ("InternLM2Tokenizer", "InternLM2TokenizerFast")
BPE_MODEL = 2  # sentencepiece's number for it
CONTROL, USER_DEFINED = 3, 4  # kinds of pieces
SPACE = "▁"  # how sentencepiece writes a space


def read_internlm2_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer with the ids of InternLM2's own code; as with that code, encoding a text adds <s> before it.

    Raises WeightsError if the file is missing, damaged or of another kind.
    """
    settings = _settings(folder)
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    proto = _read_proto(folder / "tokenizer.model")
    tokens = _added_tokens(settings)
    pieces = [tokens[number].content if number in tokens else piece.piece for number, piece in enumerate(proto.pieces)]
    scores = {name: piece.score for name, piece in zip(pieces, proto.pieces)}
    vocabulary = {name: number for number, name in enumerate(pieces)}
    model = BPE(
        vocabulary,
        generate_merges(vocabulary, scores),
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.decoder = _normalizer(proto), _decoder(proto)
    own = {number: piece for number, piece in enumerate(proto.pieces) if number not in tokens}
    for kind, add in ((CONTROL, tokenizer.add_special_tokens), (USER_DEFINED, tokenizer.add_tokens)):
        add([AddedToken(piece.piece, normalized=False) for piece in own.values() if piece.type == kind])
    for _, token in sorted(tokens.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    _check_ids(folder, tokenizer, tokens)
    return _wrapped(tokenizer, settings)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_proto(path: Path) -> Any:
    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError:
        raise WeightsError(f"{path} does not exist; it is InternLM2's vocabulary, download it") from None
    except Exception as error:  # protobuf's own DecodeError, which moves between its versions
        raise WeightsError(f"{path}: not a sentencepiece model ({error}); download it again") from None
    if proto.trainer_spec.model_type != BPE_MODEL or not proto.pieces:
        raise WeightsError(f"{path}: not a BPE model of sentencepiece; it is not InternLM2's, download it again")
    return proto


def _added_tokens(settings: dict[str, Any]) -> dict[int, AddedToken]:
    fields = ("lstrip", "rstrip", "single_word", "normalized", "special")
    return {
        int(number): AddedToken(token["content"], **{name: token[name] for name in fields if name in token})
        for number, token in settings.get("added_tokens_decoder", {}).items()
    }


def _normalizer(proto: Any) -> normalizers.Normalizer:
    spec = proto.normalizer_spec
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _decoder(proto: Any) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    return decoders.Sequence(steps)


def _check_ids(folder: Path, tokenizer: Tokenizer, tokens: dict[int, AddedToken]) -> None:
    wrong = [
        f"{token.content} is {tokenizer.token_to_id(token.content)}, expected {number}"
        for number, token in tokens.items()
        if tokenizer.token_to_id(token.content) != number
    ]
    if wrong:
        raise WeightsError(
            f"{folder}: tokenizer.model and tokenizer_config.json do not fit each other: {', '.join(wrong[:5])}; "
            "download both again"
        )


def _wrapped(tokenizer: Tokenizer, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    named = {name: _text(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    start = named["bos_token"]
    if start and settings.get("add_bos_token", True):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A",
            pair=f"{start} $A {start}:1 $B:1",
            special_tokens=[(start, tokenizer.token_to_id(start))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[_text(token) for token in settings.get("additional_special_tokens", [])],
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in named.items() if token},
    )


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
