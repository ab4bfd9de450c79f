"""Selection of sites, and grouping of sites that read the same tensor."""

import pytest
import tiny
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig

from nullbooth.models.sites import find_features, find_sites
from nullbooth.models.sites_by_name import DEFAULT

BLOCKS = [
    "down_blocks.1.attentions.0.transformer_blocks.0",
    "up_blocks.0.attentions.0.transformer_blocks.0",
    "up_blocks.0.attentions.1.transformer_blocks.0",
    "mid_block.attentions.0.transformer_blocks.0",
]


def features_of(unet, wanted=DEFAULT, timesteps=(900.0, 100.0)):
    given = tiny.protected_inputs()
    sites = find_sites(unet, wanted)
    return find_features(sites, lambda i: tiny.predict(unet, given.latents[0], timesteps[i], given.prompts))


def test_sites_are_all_four_projections_of_cross_attention(unet):
    expected = {f"{block}.attn2.{name}" for block in BLOCKS for name in ("to_q", "to_k", "to_v", "to_out.0")}
    sites = find_sites(unet)
    assert set(sites) == expected
    assert all(module is unet.get_submodule(name) for name, module in sites.items())


def test_only_the_trained_linears_read_the_block():
    """Cross-attention blocks have no other linear layers."""
    unet = tiny.unet()
    linears = {n for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear) and ".attn2." in n}
    assert set(find_sites(unet)) == linears


def test_order_is_that_of_the_modules(unet):
    names = [name for name, _ in unet.named_modules()]
    found = list(find_sites(unet))
    assert found == sorted(found, key=names.index)


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (("*.attn2.to_k",), {"attn2.to_k"}),
        (("*.attn2.to_k", "*.attn2.to_v"), {"attn2.to_k", "attn2.to_v"}),
        (("*.attn2.to_out.*",), {"attn2.to_out.0"}),  # to_out.1 is a Dropout: not a linear, not a site
        (("cross-attention", "!*.to_[qk]"), {"attn2.to_v", "attn2.to_out.0"}),
        (("!*.to_[qk]", "cross-attention"), {"attn2.to_v", "attn2.to_out.0"}),  # in any order
        (("self-attention",), {f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}),
        (("feed-forward",), {"ff.net.0.proj", "ff.net.2"}),
        (("feed-forward", "!*.net.2", "*.attn1.to_v"), {"ff.net.0.proj", "attn1.to_v"}),
    ],
)
def test_patterns(unet, patterns, found):
    assert {name.partition(".transformer_blocks.0.")[2] for name in find_sites(unet, patterns)} == found


@pytest.mark.parametrize("entry", ["to_x", "!*.attn1.to_q", "cross_attention"])
def test_patterns_without_a_match_are_refused(unet, entry):
    with pytest.raises(ValueError, match=r"'.*' is neither a kind .*cross-attention, feed-forward.*to_q"):
        find_sites(unet, ("cross-attention", entry))


def test_patterns_that_remove_all_sites_are_refused(unet):
    with pytest.raises(ValueError, match=r"\[cross-attention, !\*\] matches no layer"):
        find_sites(unet, ("cross-attention", "!*"))


def test_fused_projections_are_refused(unet):
    unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"attn1.*fused.*unfuse_qkv_projections"):
        find_sites(unet)


def test_unfused_projections_are_found_again(unet):
    before = find_sites(unet)
    unet.fuse_qkv_projections()
    unet.unfuse_qkv_projections()
    assert find_sites(unet) == before


@pytest.fixture
def wan():
    """A transformer whose attention is a class of its own."""
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    ).eval()


def test_sites_and_features_of_a_transformer(wan):
    sites = find_sites(wan)
    four = ("to_q", "to_k", "to_v", "to_out.0")
    assert list(sites) == [f"blocks.{i}.attn2.{name}" for i in range(2) for name in four]
    x, prompts = torch.randn(1, 4, 1, 4, 4), torch.randn(1, 5, 16)
    with torch.no_grad():
        features = find_features(sites, lambda i: wan(x, torch.tensor([9.0 + i]), prompts))
    assert [len(f.sites) for f in features if f.static] == [4]
    assert [len(f.sites) for f in features if not f.static] == [1, 1, 1, 1]


def test_fused_projections_of_a_transformer_are_refused(wan):
    """The processor keeps its name when fused; only the attention's flag changes."""
    wan.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"attn1.*fused.*unfuse_qkv_projections"):
        find_sites(wan)
    wan.unfuse_qkv_projections()
    assert len(find_sites(wan)) == 8


def test_layers_wrapped_by_peft_are_refused(unet):
    unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"]))
    with pytest.raises(ValueError, match=r"attn2\.to_k is wrapped.*unload"):
        find_sites(unet)


def test_the_prompt_is_one_static_feature_and_others_are_separate(unet):
    features = features_of(unet)
    text = [f for f in features if len(f.sites) > 1]
    assert len(text) == 1
    assert set(text[0].sites) == {f"{block}.attn2.{name}" for block in BLOCKS for name in ("to_k", "to_v")}
    assert text[0].static
    assert text[0].width == tiny.WIDTH
    own = [f for f in features if len(f.sites) == 1]
    assert {f.sites[0] for f in own} == {f"{block}.attn2.{name}" for block in BLOCKS for name in ("to_q", "to_out.0")}
    assert not any(f.static for f in own)
    assert all(f.name == f.sites[0] for f in features)


def test_static_features_are_found_by_their_values(unet):
    """With the same timestep twice, all features seem static."""
    assert all(f.static for f in features_of(unet, timesteps=(500.0, 500.0)))


def test_the_width_of_a_feature_is_that_of_its_tensor():
    unet, given = tiny.unet(cross_attention_dim=24), tiny.protected_inputs()
    prompts = given.prompts[..., :24]
    features = find_features(find_sites(unet), lambda i: tiny.predict(unet, given.latents[0], 9.0 - i, prompts))
    assert {f.width for f in features if f.static} == {24}
    assert {f.width for f in features if not f.static} == {32}


def test_a_site_that_is_not_called_is_an_error(unet):
    sites = find_sites(unet) | {"spare.to_k": torch.nn.Linear(4, 4)}
    given = tiny.protected_inputs()
    with pytest.raises(ValueError, match=r"without calling spare\.to_k \(1 such"):
        find_features(sites, lambda i: tiny.predict(unet, given.latents[0], 9.0 + i, given.prompts))


def test_hooks_are_removed(unet):
    features_of(unet)
    assert not any(module._forward_pre_hooks for module in unet.modules())
