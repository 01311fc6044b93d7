"""What make.py and make_golden.py share: greedy runs, and how far transformers' bfloat16 is from its float32."""
import torch
import transformers

LAST = 8  # logits of this many prompt positions are kept

# Stages whose drift is stored, as are those of `deepstack_features_0`, `deepstack_features_1` and so on.
STAGES = ("vision_last_hidden", "qformer_last_hidden", "image_features", "inputs_embeds", "text_layer_first", "text_layer_last", f"logits_last{LAST}")

# Tensors that inputs.json and the length of the prompt say too; a reference may go without them.
SPARE = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "image_position_ids", "greedy_ids")


class Forced(transformers.LogitsProcessor):
    """Makes generate() choose the given tokens one after the other."""

    def __init__(self, tokens):
        self.left = tokens.tolist()

    def __call__(self, _input_ids, scores):
        out = torch.full_like(scores, -float("inf"))
        out[:, self.left.pop(0)] = 0.0
        return out


def greedy(model, inputs, count, forced=None):
    """Greedy tokens without any stop token, the margin between best and second best logit of each, and the logits.

    With `forced` those tokens are taken instead: the logits are what the model says after each of them.
    """
    owners = [model]
    if getattr(getattr(model, "language_model", None), "generation_config", None) is not None:
        owners.append(model.language_model)  # BLIP-2 hands over to the language model's own generate
    saved = [o.generation_config for o in owners]
    for o, old in zip(owners, saved):
        o.generation_config = transformers.GenerationConfig(
            pad_token_id=old.pad_token_id, bos_token_id=old.bos_token_id, decoder_start_token_id=old.decoder_start_token_id)
    steer = [] if forced is None else [Forced(forced)]
    # Janus's own passes no processors on.
    own = type(model).generate if not type(model).__name__.startswith("Janus") else transformers.GenerationMixin.generate
    try:
        out = own(
            model, **inputs, do_sample=False, num_beams=1, max_new_tokens=count, return_dict_in_generate=True,
            output_logits=True, use_cache=True, logits_processor=transformers.LogitsProcessorList(steer),
        )
    finally:
        for o, old in zip(owners, saved):
            o.generation_config = old
    logits = torch.stack([step[0].float() for step in out.logits])
    tokens = out.sequences[0, -count:]
    assert logits.shape[0] == count, logits.shape
    assert torch.equal(logits.argmax(-1) if forced is None else forced, tokens)
    top = logits.topk(2, dim=-1).values
    return tokens, top[:, 0] - top[:, 1], logits


ROUNDED = 4  # float32 runs with other roundings of their inputs


def drift_f32(exact, taps, model, own, inputs, stages):
    """How far float32 runs of one case are from a float64 run: tensors `<stage>.f32_drift`, of stages that `drift` takes too.

    exact: the checkpoint loaded in float64; model: in float32; taps, own: what keeps their stages; inputs, stages: as for `drift`.
    One run says little where a stage enlarges what was rounded before it, so there are more, with inputs that are one rounding off.
    Where transformers computes in float32 whatever the type, the float64 run does so too: what is found is no more than the drift.
    """
    def stages_of(model, taps, inputs):
        with taps:
            logits = model(**inputs).logits
        found = {**taps.found, f"logits_last{LAST}": logits[0, -LAST:]}
        return {k: found[k].double().reshape(v.shape) for k, v in stages.items() if k in STAGES}

    floats = {k for k, v in inputs.items() if v.is_floating_point()}
    want = stages_of(exact, taps, {k: v.double() if k in floats else v for k, v in inputs.items()})
    gap = {k: (want[k] - stages[k].double()).abs().max() for k in want}
    for run in range(ROUNDED if floats else 0):
        draw = torch.Generator().manual_seed(run)
        off = {k: 1 + torch.randint(-1, 2, inputs[k].shape, generator=draw) * 2.0**-23 for k in sorted(floats)}
        near = stages_of(model, own, {k: v * off[k] if k in floats else v for k, v in inputs.items()})
        gap = {k: torch.maximum(v, (near[k] - want[k]).abs().max()) for k, v in gap.items()}
    return {f"{k}.f32_drift": v.float().reshape(1) for k, v in gap.items()}


def drift(model, taps, inputs, stages, tokens, steps):
    """How far a bfloat16 run of one case is from the float32 run: tensors `<stage>.bf16_drift` and `greedy_drift`.

    model: the checkpoint loaded in bfloat16; taps: what keeps its stages in `found`; inputs: those of the float32 run;
    stages: the tensors of the float32 run; tokens, steps: its greedy tokens and their logits.
    """
    inputs = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    with taps:
        logits = model(**inputs).logits
    found = {**taps.found, f"logits_last{LAST}": logits[0, -LAST:]}
    out = {}
    for key, want in stages.items():
        if key in STAGES or (key.startswith("deepstack_features_") and "." not in key):
            gap = (found[key].float().reshape(want.shape) - want.float()).abs()
            out[f"{key}.bf16_drift"] = torch.stack([gap.max(), gap.mean()])
    forced = greedy(model, inputs, len(tokens), forced=tokens)[2]
    out["greedy_drift"] = (forced - steps).abs().amax(-1)
    return out
