"""Weights that timm, torchvision and mmray save, in files made here of the libraries' own models."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm as timm_library
import torch
import torchvision as torchvision_library
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from mmray.models import inception_v3, pets_cnn, resnet32_cifar, timm, torchvision
from mmray.models._pretrained import read
from mmray.models._vision import Head
from mmray.training import checkpoint
from mmray.training.checkpoint import TrainState

SIZE = (64, 64)
KEEP = Head(kind="keep_imagenet", hidden=(6,))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So few numbers are faster without threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *(size or SIZE), generator=torch.Generator().manual_seed(1))


def of_timm(architecture: str = "test_efficientnet", **settings: Any) -> nn.Module:
    torch.manual_seed(5)
    model: nn.Module = timm_library.create_model(architecture, **settings)
    return used(model)


def of_torchvision(architecture: str = "mobilenet_v3_small", **settings: Any) -> nn.Module:
    torch.manual_seed(5)
    return used(torchvision_library.models.get_model(architecture, weights=None, **settings))


def used(model: nn.Module) -> nn.Module:
    """In eval mode, with statistics other than those of a new model."""
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def write(state: Any, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


@torch.no_grad()
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "of_another_name-1a2b3c4d.pth"])
@pytest.mark.parametrize("num_classes", [5, 1000])
def test_a_file_of_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, num_classes: int) -> None:
    library, x = of_timm(), images()
    path = write(library.state_dict(), tmp_path / file)
    model = timm.Config(architecture="test_efficientnet", pretrained=path).build(SIZE, num_classes).eval()
    assert torch.equal(model.embed(x), library.forward_head(library.forward_features(x), pre_logits=True))
    said = capsys.readouterr().out
    if num_classes == 1000:
        assert torch.equal(model(x), library(x))
        assert said == ""
    else:
        assert (
            said == f"model.pretrained={path}: the head starts afresh, for that in the file has 1,000 outputs, not 5\n"
        )
        assert float(model.head.classifier.weight.abs().min()) > 0


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "mnasnet0_5"])
@pytest.mark.parametrize("file", ["model.safetensors", "mobilenet-1a2b3c4d.pth"])
def test_a_file_of_torchvision(tmp_path: Path, architecture: str, file: str) -> None:
    library, x = of_torchvision(architecture), images()
    path = write(library.state_dict(), tmp_path / file)
    settings = torchvision.Config(architecture=architecture, pretrained=path)
    assert torch.equal(settings.build(SIZE, 1000).eval()(x), library(x))
    ours = settings.build(SIZE, 5).eval()
    theirs = settings.build(SIZE, 1000).eval()
    assert torch.equal(ours.embed(x), theirs.embed(x))
    assert ours(x).shape == (2, 5)


@torch.no_grad()
def test_a_convolution_as_classifier_is_a_linear_layer(tmp_path: Path) -> None:
    library, x = of_timm("resnetv2_18"), images()
    path = write(library.state_dict(), tmp_path / "model.safetensors")
    model = timm.Config(architecture="resnetv2_18", pretrained=path).build(SIZE, 1000).eval()
    torch.testing.assert_close(model(x), library(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_classifier_that_no_linear_layer_stands_for_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SqueezeNet ends in a ReLU; a batch norm stands before SHViT's classifier and goes with it."""
    path = write(of_torchvision("squeezenet1_1").state_dict(), tmp_path / "squeezenet.pth")
    torchvision.Config(architecture="squeezenet1_1", pretrained=path).build(SIZE, 1000)
    shvit = write(of_timm("shvit_s1").state_dict(), tmp_path / "shvit.safetensors")
    timm.Config(architecture="shvit_s1", pretrained=shvit).build((128, 128), 1000)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"model.pretrained={file}: the head starts afresh, for that in the file is another, or there is none"
        for file in (path, shvit)
    ]


@torch.no_grad()
def test_the_layer_of_imagenet_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for library, module in ((of_timm(), timm), (of_torchvision(), torchvision)):
        path = write(library.state_dict(), tmp_path / "weights.pth")
        architecture = "test_efficientnet" if module is timm else "mobilenet_v3_small"
        model = module.Config(architecture=architecture, pretrained=path, head=KEEP).build(SIZE, 5).eval()
        assert torch.equal(model.head.imagenet(model.backbone(images())), library(images()))
        assert "ImageNet's layer is kept; the layers behind it start afresh" in capsys.readouterr().out
        assert model(images()).shape == (2, 5)


def test_the_layer_of_imagenet_must_be_there(tmp_path: Path) -> None:
    path = write(of_timm(num_classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(ValueError, match=r"seven\.pth has no linear layer \(1000, 256\) for .*keep_imagenet to keep"):
        timm.Config(architecture="test_efficientnet", pretrained=path, head=KEEP).build(SIZE, 5)
    path = write(of_timm(num_classes=0).state_dict(), tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"none\.pth has no linear layer \(1000, 256\)"):
        timm.Config(architecture="test_efficientnet", pretrained=path, head=KEEP).build(SIZE, 5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(160, 160), (128, 96)])
def test_positions_of_a_vit_of_timm_are_interpolated(tmp_path: Path, size: tuple[int, int]) -> None:
    library, x = of_timm("test_vit"), images(*size)
    path = write(library.state_dict(), tmp_path / "vit.safetensors")
    resized = timm_library.create_model("test_vit", img_size=size).eval()
    grid = [size[0] // 16, size[1] // 16]
    positions = resample_abs_pos_embed(library.pos_embed, new_size=grid, num_prefix_tokens=1)
    resized.load_state_dict(library.state_dict() | {"pos_embed": positions})
    model = timm.Config(architecture="test_vit", pretrained=path).build(size, 1000).eval()
    torch.testing.assert_close(model(x), resized(x), rtol=1e-6, atol=1e-6)


def test_states_of_torchvision_are_brought_up_to_date() -> None:
    """Positions by the library's own interpolation; DenseNet's old names; no auxiliary classifiers."""
    from torchvision.models import DenseNet, VisionTransformer
    from torchvision.models.vision_transformer import interpolate_embeddings

    sizes = {"patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    small, large = (VisionTransformer(image_size=size, **sizes) for size in (64, 96))
    with torch.no_grad():
        small.encoder.pos_embedding.normal_()
    state = small.state_dict()
    today = torchvision._of_today(state, large)
    expected = interpolate_embeddings(96, 16, OrderedDict(small.state_dict()))["encoder.pos_embedding"]
    assert expected.shape == (1, 37, 16)
    assert torch.equal(today["encoder.pos_embedding"], expected)
    assert state["encoder.pos_embedding"].shape == (1, 17, 16)
    large.load_state_dict(today)

    densenet = DenseNet(growth_rate=2, block_config=(2, 2), num_init_features=4, num_classes=3)
    old = {name.replace("norm1", "norm.1").replace("conv2", "conv.2"): t for name, t in densenet.state_dict().items()}
    assert old.keys() != densenet.state_dict().keys()
    assert torchvision._of_today(old, densenet).keys() == densenet.state_dict().keys()

    googlenet = torchvision_library.models.GoogLeNet(num_classes=3, aux_logits=True, init_weights=False)
    bare = torchvision_library.models.GoogLeNet(num_classes=3, aux_logits=False, init_weights=False)
    bare.load_state_dict(torchvision._of_today(googlenet.state_dict(), bare))


@pytest.mark.parametrize("form", ["nested", "averaged", "distributed", "compiled", "options"])
def test_larger_files_and_wrapped_models(tmp_path: Path, form: str) -> None:
    state = dict(nn.Linear(2, 3).state_dict())
    other = {name: tensor + 1 for name, tensor in state.items()}
    saved: dict[str, Any] = {
        "nested": {"state_dict": state, "epoch": 3},
        "averaged": {"model": other, "model_ema": state},
        "distributed": {f"module.{name}": tensor for name, tensor in state.items()},
        "compiled": {"state_dict": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}},
        "options": {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
    }[form]
    found = read(write(saved, tmp_path / "file.pth.tar"))
    assert found.backbone.keys() == state.keys()
    assert all(torch.equal(found.backbone[name], state[name]) for name in state)


def save(tmp_path: Path, model: nn.Module, step: int) -> Path:
    return checkpoint.save(tmp_path, TrainState(step=step), model, torch.optim.SGD(model.parameters(), lr=1.0))


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        timm.Config(architecture="test_efficientnet", head=Head(kind="mlp", hidden=(6,))),
        timm.Config(architecture="test_vit"),
        torchvision.Config(architecture="mnasnet0_5", head=KEEP),
        resnet32_cifar.Config(),
        pets_cnn.Config(channels=(2, 3), hidden=4, batch_norm=True),
        inception_v3.Config(cut="maxpool2", hidden=8),
    ],
    ids=lambda settings: settings.name,
)
def test_a_checkpoint_of_mmray(tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: Any) -> None:
    trained = used(settings.build(SIZE, 2))
    folder = save(tmp_path, trained, 7)
    for source in (folder, folder / "model.safetensors"):
        ours = settings.model_copy(update={"pretrained": str(source)}).build(SIZE, 2).eval()
        assert torch.equal(ours(images()), trained(images()))
    assert capsys.readouterr().out == ""
    if settings.name != "pets_cnn":
        other = settings.model_copy(update={"pretrained": str(folder)}).build(SIZE, 9).eval()
        assert torch.equal(other.backbone(images()), trained.backbone(images()))
        said = "that in the file has 2 outputs, not 9" if "imagenet" not in other.head._modules else "ImageNet's layer"
        assert said in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"is a run folder; name one of its checkpoints, .*: step-00000007"):
        settings.model_copy(update={"pretrained": str(tmp_path)}).build(SIZE, 2)


@torch.no_grad()
def test_another_head_takes_the_backbone_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = timm.Config(architecture="test_efficientnet")
    trained = used(plain.build(SIZE, 3))
    update = {"pretrained": str(save(tmp_path, trained, 1)), "head": Head(kind="mlp", hidden=(6,))}
    other = plain.model_copy(update=update).build(SIZE, 3).eval()
    assert torch.equal(other.backbone(images()), trained.backbone(images()))
    assert "the head starts afresh, for that in the file is another" in capsys.readouterr().out


@torch.no_grad()
def test_a_checkpoint_of_a_vit_serves_another_image_size(tmp_path: Path) -> None:
    trained = used(timm.Config(architecture="test_vit").build((160, 160), 3))
    settings = timm.Config(architecture="test_vit", pretrained=str(save(tmp_path, trained, 1)))
    model = settings.build((96, 96), 3).eval()
    positions = resample_abs_pos_embed(trained.backbone.pos_embed, new_size=[6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(model.backbone.pos_embed, positions)
    assert torch.equal(model.head.classifier.weight, trained.head.classifier.weight)


@torch.no_grad()
def test_inception_takes_what_stands_before_the_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = used(torchvision_library.models.Inception3(aux_logits=True, init_weights=False))
    path = write(library.state_dict(), tmp_path / "inception.pth")
    model = inception_v3.Config(cut="mixed0", hidden=8, pretrained=path).build((75, 75), 3)
    for name in ("Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch_pool.bn.running_var"):
        assert torch.equal(model.backbone.state_dict()[name], library.state_dict()[name])
    assert "the head starts afresh" in capsys.readouterr().out
    state = {name: tensor for name, tensor in library.state_dict().items() if "Mixed_5b.branch1x1.bn" not in name}
    with pytest.raises(ValueError, match=r"missing: Mixed_5b\.branch1x1\.bn\.weight"):
        inception_v3.Config(cut="mixed0", pretrained=write(state, tmp_path / "less.pth")).build((75, 75), 3)


def misfit(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new if name == old else name: tensor for name, tensor in state.items()}


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = dict(of_timm().state_dict())
    state["conv_stem.weight"] = torch.zeros(3, 3)
    path = write(misfit(state, "bn1.bias", "bn1.beta"), tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"wrong\.pth: weights of another model") as error:
        timm.Config(architecture="test_efficientnet", pretrained=path).build(SIZE, 5)
    lines = str(error.value).splitlines()[1:]
    assert lines[:2] == ["  missing: bn1.bias", "  unknown: bn1.beta"]
    assert lines[2].startswith("  of another shape: conv_stem.weight: ")
    assert "[3, 3]" in lines[2]

    theirs = write(of_torchvision().state_dict(), tmp_path / "torchvision.pth")
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more\n  unknown: .* and \d+ more"):
        timm.Config(architecture="test_efficientnet", pretrained=theirs).build(SIZE, 5)
    with pytest.raises(ValueError, match=r"weights of another model"):
        timm.Config(architecture="test_convnext", pretrained=theirs).build(SIZE, 5)
    with pytest.raises(ValueError, match=r"weights of another model:\n  missing"):
        torchvision.Config(architecture="shufflenet_v2_x0_5", pretrained=theirs).build(SIZE, 5)
    with pytest.raises(ValueError, match=r"weights of another model:\n  missing: conv1\.weight"):
        pets_cnn.Config(pretrained=theirs).build(SIZE, 2)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("sprung"),))


def test_nothing_but_tensors_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "code.pth": lambda path: torch.save({"weight": Trap()}, path),
        "plain.pkl": lambda path: path.write_bytes(pickle.dumps({"weight": Trap()}, protocol=2)),
        "text.pth": lambda path: path.write_text("<!DOCTYPE html>"),
        "empty.pth": lambda path: path.write_bytes(b""),
    }
    for name, make in files.items():
        make(tmp_path / name)
        with pytest.raises(
            ValueError, match=rf"model.pretrained={name}: neither safetensors nor a file of torch\.save"
        ):
            resnet32_cifar.Config(pretrained=name).build(SIZE, 2)
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "cut.safetensors").write_bytes((1 << 20).to_bytes(8, "little") + b"{")
    with pytest.raises(ValueError, match=r"cut\.safetensors: a damaged file of safetensors"):
        read("cut.safetensors")
    for state in ({}, [1, 2], {"epoch": 3}):
        with pytest.raises(ValueError, match=r"state\.pth: holds no state dict"):
            read(write(state, Path("state.pth")))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"folder: a folder without model\.safetensors or pytorch_model\.bin"):
        read("folder")


def test_the_hub_of_torchvision_is_asked_by_the_library_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its cache, where this test puts a file by the name that the library gives it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = torchvision_library.models.get_model_weights("mobilenet_v3_small").DEFAULT.url.rpartition("/")[2]
    library = of_torchvision()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    write(library.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    model = torchvision.Config(architecture="mobilenet_v3_small", pretrained=True).build(SIZE, 1000).eval()
    assert torch.equal(model(images()), library(images()))
    torchvision.Config(architecture="mobilenet_v3_small", pretrained=True).build(SIZE, 4)
    assert capsys.readouterr().out == (
        "torchvision/mobilenet_v3_small: the head starts afresh, for that in the file has 1,000 outputs, not 4\n"
    )


def test_the_hub_of_timm_is_asked_by_the_library_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    library = of_timm()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: library.state_dict())
    settings = timm.Config(architecture="test_efficientnet", pretrained=True)
    assert torch.equal(settings.build(SIZE, 1000).eval()(images()), library(images()))
    kept = settings.model_copy(update={"head": KEEP}).build(SIZE, 4).eval()
    assert torch.equal(kept.head.imagenet(kept.backbone(images())), library(images()))

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(ValueError, match=r"pretrained=true: timm/test_efficientnet .*no network.*give the file's path"):
        settings.build(SIZE, 4)
    with pytest.raises(
        ValueError, match=r"pretrained=true: timm/resnet50t has no weights.*No pretrained weights exist"
    ):
        timm.Config(architecture="resnet50t", pretrained=True).build(SIZE, 4)


@pytest.mark.parametrize("module", [resnet32_cifar, pets_cnn])
def test_no_hub_has_weights_of_models_that_are_ours(module: Any) -> None:
    with pytest.raises(ValueError, match=r"model\.pretrained=true: no hub has weights of this model"):
        module.Config(pretrained=True).build(SIZE, 2)


def test_names_and_shapes_do_not_depend_on_the_weights(tmp_path: Path) -> None:
    """So what was trained from them loads without them."""
    for library, module, architecture in (
        (of_timm("test_vit"), timm, "test_vit"),
        (of_torchvision(), torchvision, "mobilenet_v3_small"),
    ):
        path = write(library.state_dict(), tmp_path / "weights.safetensors")
        with_weights = module.Config(architecture=architecture, pretrained=path, head=KEEP).build((96, 96), 3)
        without = module.Config(architecture=architecture, head=KEEP).build((96, 96), 3)
        without.load_state_dict(dict(with_weights.state_dict()))
        assert [name for name, _ in without.named_parameters()] == [name for name, _ in with_weights.named_parameters()]
