"""The models of images against published counts, the libraries' own models, and layers as usually written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm as timm_library
import torch
import torch.nn.functional as F
import torchvision as torchvision_library
from pydantic import ValidationError
from torch import Tensor, nn

from mmray import config
from mmray.models import inception_v3, pets_cnn, pets_cnn_multiclass, resnet32_cifar, timm, torchvision
from mmray.models._vision import Classifier, Head, TwoLogits, at_rest, convolutions


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So few numbers are faster without threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def on_meta(settings: Any, size: tuple[int, int], num_classes: int) -> Classifier:
    with torch.device("meta"):
        model: Classifier = settings.build(size, num_classes)
    return model


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def images(rows: int, *size: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed))


PUBLISHED = [
    ("efficientnet_b0", "efficientnet_b0", 5_288_548),
    ("efficientnet_b1", "efficientnet_b1", 7_794_184),
    ("efficientnet_b2", "efficientnet_b2", 9_109_994),
    ("resnet152", "resnet152", 60_192_808),
    ("vit_base_patch16_224", "vit_b_16", 86_567_656),
]


@pytest.mark.parametrize(("of_timm", "of_torchvision", "parameters"), PUBLISHED)
def test_published_parameter_counts(of_timm: str, of_torchvision: str, parameters: int) -> None:
    assert count(on_meta(timm.Config(architecture=of_timm), (224, 224), 1000)) == parameters
    assert count(on_meta(torchvision.Config(architecture=of_torchvision), (224, 224), 1000)) == parameters


@pytest.mark.parametrize(
    "architecture",
    [
        "alexnet", "convnext_tiny", "densenet121", "googlenet", "maxvit_t", "mnasnet0_5", "mobilenet_v2",
        "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_v2_t", "vgg11_bn",
    ],
)  # fmt: skip
def test_every_family_of_torchvision_has_the_parameters_of_the_library(architecture: str) -> None:
    """As the library's own table of weights says; GoogLeNet's has no auxiliary classifiers in it."""
    published = torchvision_library.models.get_model_weights(architecture).DEFAULT.meta["num_params"]
    model = on_meta(torchvision.Config(architecture=architecture), (224, 224), 1000)
    assert count(model) == published
    with torch.device("meta"):
        assert model.eval()(torch.empty(2, 3, 224, 224)).shape == (2, 1000)


@pytest.mark.parametrize(
    "architecture",
    ["test_vit", "test_efficientnet", "test_convnext", "test_nfnet", "resnetv2_18", "crossvit_tiny_240", "levit_128s",
     "deit_tiny_distilled_patch16_224", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224", "vgg11"],
)  # fmt: skip
def test_every_kind_of_head_of_timm_gives_way_to_ours(architecture: str) -> None:
    size = 240 if architecture.endswith("240") else 224
    model = on_meta(timm.Config(architecture=architecture), (size, size), 7)
    with torch.device("meta"):
        x = torch.empty(2, 3, size, size)
        assert model.eval()(x).shape == (2, 7)
        assert model.embed(x).shape == (2, model.embedding_size)


@torch.no_grad()
def test_backbone_gives_what_the_library_gives_its_classifier() -> None:
    x = images(2, 64, 48)
    for architecture in ("resnet18", "mobilenet_v3_small", "densenet121"):
        model = torchvision.Config(architecture=architecture).build((64, 48), 5).eval()
        library = torchvision_library.models.get_model(architecture, weights=None)
        library.load_state_dict(library.state_dict() | model.backbone.state_dict())
        *_, (_, last) = [part for part in library.named_modules() if isinstance(part[1], nn.Linear)]
        read: list[Tensor] = []
        last.register_forward_hook(lambda _layer, inputs, _output, read=read: read.append(inputs[0]))
        library.eval()(x)
        assert torch.equal(model.embed(x), read[0])
    for architecture in ("test_efficientnet", "test_convnext", "mobilenetv3_small_050"):
        model = timm.Config(architecture=architecture).build((64, 48), 5).eval()
        library = timm_library.create_model(architecture)
        library.load_state_dict(library.state_dict() | model.backbone.state_dict())
        library.eval()
        assert torch.equal(model.embed(x), library.forward_head(library.forward_features(x), pre_logits=True))


@torch.no_grad()
@pytest.mark.parametrize("size", [(160, 160), (96, 128)])
def test_a_vit_is_made_for_the_image_size(size: tuple[int, int]) -> None:
    model = timm.Config(architecture="test_vit").build(size, 3)
    assert model.backbone.pos_embed.shape[1] == 1 + size[0] // 16 * (size[1] // 16)  # type: ignore[union-attr,index]
    assert model.eval()(images(1, *size)).shape == (1, 3)
    assert model.feature_layer is None


def test_a_size_that_an_architecture_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torchvision/vit_b_16 can't be made for \(64, 32\) pixels.*square images"):
        on_meta(torchvision.Config(architecture="vit_b_16"), (64, 32), 2)
    with pytest.raises(ValueError, match=r"torchvision/vit_b_16 can't be made for \(65, 65\)"):
        on_meta(torchvision.Config(architecture="vit_b_16"), (65, 65), 2)
    with pytest.raises(ValueError, match=r"timm/nest_tiny can't be made with img_size=\(224, 256\).*square"):
        on_meta(timm.Config(architecture="nest_tiny"), (224, 256), 2)
    with pytest.raises(ValueError, match="images of 224 x 224 pixels don't fit this model"):
        timm.Config(architecture="crossvit_tiny_240").build((224, 224), 2)
    with pytest.raises(ValueError, match="images of 30 x 150 pixels don't fit this model"):
        inception_v3.Config().build((30, 150), 2)
    with pytest.raises(ValueError, match=r"images of 21 x 150 pixels are too small for 3 .* need 22 x 22"):
        pets_cnn.Config().build((21, 150), 2)
    assert pets_cnn.Config().build((22, 22), 2)(images(1, 22, 22)).shape == (1, 2)


def test_wrong_names_are_answered_with_near_ones() -> None:
    with pytest.raises(ValidationError, match=r"timm has no classifier 'resnet_18'; did you mean .*'resnet18'"):
        timm.Config(architecture="resnet_18")
    with pytest.raises(ValidationError, match=r"timm has no weights 'in1k' of vit_base_patch16_siglip_224; choose"):
        timm.Config(architecture="vit_base_patch16_siglip_224.in1k")
    with pytest.raises(ValidationError, match=r"torchvision has no classifier 'vitb16'; did you mean 'vit_b_16'"):
        torchvision.Config(architecture="vitb16")
    with pytest.raises(ValidationError, match=r"torchvision has no classifier 'raft_large'"):
        torchvision.Config(architecture="raft_large")  # in the library, but no classifier
    with pytest.raises(ValueError, match="timm/deepseek_vit_412m_enc is no classifier"):
        on_meta(timm.Config(architecture="deepseek_vit_412m_enc"), (224, 224), 2)
    with pytest.raises(ValidationError, match=r"'Mixed_6f' is no layer of inception_v3; did you mean 'Mixed_6"):
        inception_v3.Config(cut="Mixed_6f")


def test_rates_of_dropout_reach_the_architecture_or_are_refused() -> None:
    model = on_meta(timm.Config(architecture="test_efficientnet", drop_rate=0.3, drop_path_rate=0.2), (64, 64), 2)
    assert model.backbone.drop_rate == 0.3
    paths = [part.drop_prob for part in model.modules() if type(part).__name__ == "DropPath"]
    assert paths
    assert 0 < max(paths) < 0.2  # it rises from block to block
    tv = torchvision.Config(architecture="efficientnet_b0", drop_rate=0.3, drop_path_rate=0.16)
    model = on_meta(tv, (64, 64), 2)
    assert [part.p for part in model.backbone.modules() if isinstance(part, nn.Dropout)] == [0.3]
    stochastic = [part.p for part in model.modules() if type(part).__name__ == "StochasticDepth"]
    assert max(stochastic) == pytest.approx(0.16 * 15 / 16)  # of the last of 16 blocks
    for settings in (
        timm.Config(architecture="test_convnext", drop_rate=0.1, drop_path_rate=0.1),
        torchvision.Config(architecture="densenet121", drop_rate=0.1),
    ):
        on_meta(settings, (64, 64), 2)
    with pytest.raises(ValueError, match=r"torchvision/resnet18 can't be made.*dropout"):
        on_meta(torchvision.Config(drop_rate=0.1), (64, 64), 2)
    with pytest.raises(ValueError, match=r"torchvision/swin_t can't be made.*stochastic_depth_prob"):
        on_meta(torchvision.Config(architecture="swin_t", drop_path_rate=0.1), (64, 64), 2)
    with pytest.raises(ValueError, match=r"torchvision/convnext_tiny has no dropout"):
        on_meta(torchvision.Config(architecture="convnext_tiny", drop_rate=0.1), (64, 64), 2)


def test_heads_have_the_layers_they_say() -> None:
    def layers(head: Head, **own: Any) -> list[str]:
        return [f"{name} {layer}" for name, layer in head.build(9, 4, **own).named_children()]

    def linear(name: str, size_in: int, size_out: int) -> str:
        return f"{name} Linear(in_features={size_in}, out_features={size_out}, bias=True)"

    assert layers(Head()) == [linear("classifier", 9, 4)]
    dropout = "Dropout(p=0.3, inplace=False)"
    assert layers(Head(kind="dropout_linear", dropout=0.3)) == [f"dropout {dropout}", linear("classifier", 9, 4)]
    assert layers(Head(kind="mlp", dropout=0.3, hidden=(8, 6))) == [
        linear("hidden1", 9, 8), "relu1 ReLU()", f"dropout1 {dropout}",
        linear("hidden2", 8, 6), "relu2 ReLU()", f"dropout2 {dropout}",
        linear("classifier", 6, 4),
    ]  # fmt: skip
    assert layers(Head(kind="keep_imagenet", dropout=0.3), imagenet_classes=1000) == [
        linear("imagenet", 9, 1000), f"dropout {dropout}",
        linear("hidden1", 1000, 128), "relu1 ReLU()", linear("classifier", 128, 4),
    ]  # fmt: skip
    with pytest.raises(ValidationError, match=r"kind=linear has no dropout=0\.1; use kind: dropout_linear"):
        Head(dropout=0.1)
    with pytest.raises(ValidationError, match=r"kind=dropout_linear has no hidden=\[3\]; use kind: mlp"):
        Head(kind="dropout_linear", hidden=(3,))
    with pytest.raises(ValueError, match="keep_imagenet: this architecture has no linear layer to keep"):
        resnet32_cifar.Config(head=Head(kind="keep_imagenet")).build((32, 32), 2)
    with pytest.raises(ValueError, match="keep_imagenet: this architecture has no linear layer to keep"):
        on_meta(torchvision.Config(architecture="squeezenet1_1", head=Head(kind="keep_imagenet")), (64, 64), 2)


def test_the_vit_of_the_album_covers_has_the_kept_layer_and_the_new_ones() -> None:
    """86,567,656 of ViT-B/16 with its classifier of 1,000, and 1000 x 128 + 128 + 128 x 20 + 20 behind it."""
    for settings in (
        torchvision.Config(architecture="vit_b_16", head=Head(kind="keep_imagenet")),
        timm.Config(architecture="vit_base_patch16_224", head=Head(kind="keep_imagenet")),
    ):
        model = on_meta(settings, (224, 224), 20)
        assert count(model) == 86_567_656 + 128_128 + 2_580
        assert model.embedding_size == 128


def test_settings_come_back_from_a_run_file() -> None:
    values = {
        "name": "r", "task": "video_classification",
        "dataset": {"name": "youtube8m", "path": "p", "num_classes": 2, "level": "video"},
    }  # fmt: skip
    run = config.from_dict(
        {**values, "model": {"name": "timm/test_vit", "pretrained": "true", "head": {"kind": "mlp", "hidden": [7]}}}
    )
    assert run.model == timm.Config(architecture="test_vit", pretrained=True, head=Head(kind="mlp", hidden=(7,)))
    assert config.from_dict(run.to_dict()).to_dict() == run.to_dict()
    assert run.to_dict()["model"]["head"] == {"kind": "mlp", "dropout": 0.2, "hidden": [7]}
    assert timm.Config(pretrained="false").pretrained is False
    assert timm.Config(pretrained="weights.pth").pretrained == "weights.pth"


def test_resnet32_has_the_published_size_and_gives_what_its_layers_give() -> None:
    """0.46 M at 10 classes: 432 + 3 stages of 10 convolutions, batch norms, and 650, counted by hand."""
    torch.manual_seed(0)
    model = resnet32_cifar.Config().build((32, 32), 10).eval()
    convolutions_by_hand = 3 * 16 * 9 + 10 * 16 * 16 * 9 + (16 * 32 + 9 * 32 * 32) * 9 + (32 * 64 + 9 * 64 * 64) * 9
    norms_by_hand = 2 * (16 + 10 * 16 + 10 * 32 + 10 * 64)
    assert count(model) == convolutions_by_hand + norms_by_hand + 64 * 10 + 10 == 464_154
    layers = [part for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 32

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x = images(2, 36, 28)
        state, expected = model.state_dict(), x
        expected = F.relu(naive_norm(F.conv2d(x, state["backbone.conv.weight"], padding=1), state, "backbone.norm"))
        for stage in (1, 2, 3):
            for block in range(5):
                expected = naive_block(expected, state, f"backbone.stage{stage}.{block}", stage > 1 and block == 0)
        assert expected.shape == (2, 64, 9, 7)
        torch.testing.assert_close(model.embed(x), expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert model.feature_layer == "backbone.stage3"


def naive_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{key}"].view(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def naive_block(x: Tensor, state: dict[str, Tensor], name: str, first: bool) -> Tensor:
    inner = F.conv2d(x, state[f"{name}.conv1.weight"], stride=2 if first else 1, padding=1)
    inner = F.conv2d(F.relu(naive_norm(inner, state, f"{name}.norm1")), state[f"{name}.conv2.weight"], padding=1)
    shortcut = x
    if first:  # every other point, between as many channels of zeros
        zeros = torch.zeros_like(inner[:, : x.shape[1] // 2])
        shortcut = torch.cat([zeros, F.avg_pool2d(x, 1, stride=2), zeros], 1)
    return F.relu(naive_norm(inner, state, f"{name}.norm2") + shortcut)


def test_pets_cnn_has_the_published_layers() -> None:
    model = on_meta(pets_cnn.Config(), (150, 150), 2)
    sizes = [count(part) for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert sizes == [448, 4_640, 18_496, 9_470_464, 513]
    assert count(model) == 9_494_561
    assert model.head.dense.in_features == 18_496 == 64 * 17 * 17
    with pytest.raises(ValueError, match="pets_cnn tells 2 classes apart, not 37; use pets_cnn_multiclass"):
        on_meta(pets_cnn.Config(), (150, 150), 37)


def test_pets_cnn_gives_what_keras_layers_give_and_binary_cross_entropy() -> None:
    torch.manual_seed(0)
    model = pets_cnn.Config(channels=(2, 3, 4), hidden=5).build((30, 26), 2)
    x, labels = images(6, 30, 26), torch.tensor([0, 1, 1, 0, 1, 0])
    state, hidden = model.state_dict(), x
    for number in (1, 2, 3):
        kernel, bias = (state[f"backbone.conv{number}.{part}"] for part in ("weight", "bias"))
        hidden = F.max_pool2d(F.relu(F.conv2d(hidden, kernel, bias)), 2)
    hidden = F.relu(hidden.flatten(1) @ state["head.dense.weight"].T + state["head.dense.bias"])
    z = (hidden @ state["head.classifier.weight"].T + state["head.classifier.bias"]).squeeze(1)
    logits = model(x)
    torch.testing.assert_close(logits.softmax(1)[:, 1], z.sigmoid())
    torch.testing.assert_close(F.cross_entropy(logits, labels), F.binary_cross_entropy_with_logits(z, labels.float()))
    limit = (6 / (3 * 9 + 2 * 9)) ** 0.5  # Glorot's, of a convolution from 3 to 2 channels, as Keras draws weights
    assert 0.9 * limit < float(state["backbone.conv1.weight"].abs().max()) <= limit
    assert float(state["backbone.conv1.bias"].abs().max()) == 0


def test_options_of_pets_cnn_stand_where_they_are_said_to() -> None:
    model = on_meta(pets_cnn.Config(dropout=0.5, batch_norm=True), (150, 150), 2)
    assert list(dict(model.backbone.named_children())) == [
        f"{kind}{number}" for number in (1, 2, 3) for kind in ("conv", "norm", "relu", "pool")
    ]
    assert [name for name, _ in model.head.named_children()] == [
        "flatten", "dropout1", "dense", "norm", "relu", "dropout2", "classifier",
    ]  # fmt: skip
    assert isinstance(model.head.classifier, TwoLogits)


def test_breeds_have_the_layers_of_the_exercise() -> None:
    """By hand: three convolutions, 128 x 17 x 17 numbers into 512, and those into 37."""
    model = on_meta(pets_cnn_multiclass.Config(), (150, 150), 37)
    sizes = [count(part) for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert sizes == [896, 18_496, 73_856, 36_992 * 512 + 512, 512 * 37 + 37]
    assert sum(sizes) == count(model) == 19_052_645
    names = [type(part).__name__ for part in [*model.backbone, *model.head]]  # type: ignore[misc]
    block = ["Conv2d", "ReLU", "MaxPool2d"]
    assert names == [
        *block, *block, "Dropout", *block, "Dropout", "Flatten", "Linear", "ReLU", "Dropout", "Linear",
    ]  # fmt: skip
    assert [part.p for part in model.modules() if isinstance(part, nn.Dropout)] == [0.3, 0.3, 0.4]


def test_convolutions_say_how_many_numbers_they_leave() -> None:
    for size in ((22, 22), (23, 31), (50, 150)):
        backbone, left = convolutions((2, 3, 4), (0.1, 0.0, 0.2), True, size)
        with at_rest(backbone):
            assert backbone(images(1, *size)).numel() == left


def test_inception_is_cut_where_the_feature_map_is_published() -> None:
    model = on_meta(inception_v3.Config(), (150, 150), 37)
    with torch.device("meta"):
        assert model.backbone.eval()(torch.empty(2, 3, 150, 150)).shape == (2, 768, 7, 7)
    assert [name for name, _ in model.head.named_children()] == [
        "flatten", "dense", "relu", "norm", "dropout", "classifier",
    ]  # fmt: skip
    assert (model.head.dense.in_features, model.head.dense.out_features) == (37_632, 1024)
    assert model.head.dropout.p == 0.7
    assert model.feature_layer == "backbone.Mixed_6e"


@pytest.mark.parametrize(("keras", "block", "shape"), [
    ("mixed0", "Mixed_5b", (256, 16, 16)), ("mixed2", "Mixed_5d", (288, 16, 16)), ("mixed3", "Mixed_6a", (768, 7, 7)),
    ("mixed7", "Mixed_6e", (768, 7, 7)), ("mixed8", "Mixed_7a", (1280, 3, 3)), ("mixed10", "Mixed_7c", (2048, 3, 3)),
])  # fmt: skip
def test_keras_names_of_blocks_mean_the_same(keras: str, block: str, shape: tuple[int, ...]) -> None:
    settings = inception_v3.Config(cut=keras)
    assert settings.cut == block
    with torch.device("meta"):
        assert inception_v3.inception(settings.cut).eval()(torch.empty(2, 3, 150, 150)).shape == (2, *shape)


@torch.no_grad()
def test_inception_gives_what_torchvision_gives_with_its_weights() -> None:
    """With weights, torchvision's model turns ImageNet's normalisation into pixels from -1 to 1; so do these layers."""
    backbone = inception_v3.inception("Mixed_7c").eval()
    library = torchvision_library.models.Inception3(aux_logits=False, init_weights=False, transform_input=True).eval()
    library.load_state_dict(library.state_dict() | backbone.state_dict())
    seen: list[Tensor] = []
    library.Mixed_7c.register_forward_hook(lambda *args: seen.append(args[2]))
    x = images(1, 80, 96)
    library(x)
    assert torch.equal(backbone(x), seen[0])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(inception_v3.Rescale()((pixels - mean) / std), 2 * pixels - 1)


@pytest.mark.parametrize(("settings", "layer"), [
    (torchvision.Config(), "backbone.layer4"),
    (torchvision.Config(architecture="mobilenet_v3_small"), "backbone.features"),
    (timm.Config(), "backbone.layer4"),
    (timm.Config(architecture="test_efficientnet"), "backbone.bn2"),
    (timm.Config(architecture="test_vit"), None),
    (pets_cnn.Config(), "backbone.relu3"),
])  # fmt: skip
def test_heat_maps_are_made_of_the_last_feature_map(settings: Any, layer: str | None) -> None:
    model = settings.build((96, 96), 2).train()
    model.backbone.eval()
    assert model.feature_layer == layer
    assert model.training
    assert not model.backbone.training  # what was frozen stays frozen
