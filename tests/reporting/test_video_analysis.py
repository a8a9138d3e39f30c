"""The report's study of modalities: its table over runs, and what words and labels are common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import change, report, write_run

from mmray.reporting import plots_video
from mmray.reporting.runs import read_run
from mmray.reporting.video import modalities, modality_tables

SCORES = {"gap": 0.776, "hit_at_1": 0.837, "perr": 0.702, "map": 0.319}


def run_of(folder: Path, inputs: list[str] | None, model: str = "moe", gap: float = 0.5, **config: Any) -> Path:
    """A run folder of a model that reads these inputs."""
    write_run(folder, name=folder.name, model=model, num_classes=30, num_epochs=1)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["model"]["inputs"] = inputs
    (folder / "config.yaml").write_text(yaml.safe_dump(values | config))
    change(folder, "evaluation/test.json", lambda e: e["metrics"].update(gap=gap))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> list[Path]:
    """Five runs, given in no order; one has published scores of its own, one of them only such."""
    published = {"source": "Table 5", "scores": {"test": SCORES}}
    full = run_of(tmp_path / "full", ["mean_rgb", "mean_audio", "keywords", "title_vector"], gap=0.9)
    both = run_of(tmp_path / "both", ["mean_rgb", "mean_audio"], gap=0.8, published=published)
    cnn = run_of(tmp_path / "cnn", ["title_words"], model="text_cnn", gap=0.4)
    sound = run_of(tmp_path / "sound", ["mean_audio"], gap=0.45)
    other = run_of(tmp_path / "other", ["cover", "mean_rgb"], gap=0.7)
    return [full, both, cnn, sound, other]


def test_a_row_a_run_by_what_it_reads_with_what_was_published_beside(study: list[Path], tmp_path: Path) -> None:
    page, html = report(tmp_path, *study)
    header, *rows = page.tables["modalities"]
    assert header == [
        "model", "run", "visual", "audio", "keywords", "title", "cover",
        "GAP", "GAP, published", "Hit@1", "Hit@1, published", "PERR", "PERR, published", "mAP", "mAP, published",
    ]  # fmt: skip
    assert [(row[1], row[0], "".join(cell or "-" for cell in row[2:7]), row[7], row[8]) for row in rows] == [
        ("sound", "moe", "-✓---", "0.4500", "—"),
        ("cnn", "text_cnn", "---✓-", "0.4000", "—"),
        ("both", "moe", "✓✓---", "0.8000", "0.7760"),
        ("other", "moe", "✓---✓", "0.7000", "—"),
        ("full", "moe", "✓✓✓✓-", "0.9000", "—"),
    ]
    assert rows[2][10] == "0.8370"
    assert rows[2][14] == "0.3190"
    assert "By modality" in html


def test_one_run_or_several_alike_need_no_such_table(study: list[Path], tmp_path: Path) -> None:
    alike = run_of(tmp_path / "again", ["mean_rgb", "mean_audio"])
    for paths in ([study[1]], [study[1], alike]):
        assert modality_tables([read_run(path) for path in paths], ["test"]) == []
        _, html = report(tmp_path, *paths)
        assert "By modality" not in html


def test_inputs_left_out_are_all_that_the_dataset_has(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", None)
    shapes = {"mean_audio": [128], "keywords": [1024], "has_keywords": [], "title_words": [None], "rgb": [None, 1024]}
    added = [{"name": name, "dtype": "uint8", "shape": shape, "unit": ""} for name, shape in shapes.items()]
    change(folder, "dataset.json", lambda data: data["columns"].extend(added))
    assert modalities(read_run(folder)) == ["visual", "audio", "keywords"]
    melody = run_of(tmp_path / "melody", None, task={"name": "melody_extraction"})
    assert modalities(read_run(melody)) == []


def test_common_words_and_labels_are_drawn_once_for_a_corpus(study: list[Path], tmp_path: Path) -> None:
    words = [{"word": word, "count": count} for word, count in (("game", 40), ("$100", 30), ("a_b", 2))]
    for run in study[:2]:
        change(
            run, "evaluation/test.json", lambda e: e.update(common_words={"title_words": words, "keyword_words": []})
        )
    change(study[1], "dataset.json", lambda data: data.update(id="prepared-otherwise"))
    _, html = report(tmp_path, *study[:2])
    assert html.count("The 3 most frequent words of the titles of youtube8m-ab12cd34.") == 2  # alt and caption
    assert "of the keywords" not in html
    assert html.count("The 20 most frequent of 30 labels of youtube8m-ab12cd34.") == 2
    assert (tmp_path / "report" / "common_words_titles_youtube8m_ab12cd34.png").is_file()
    _, html = report(tmp_path / "without", *study[2:])
    assert "most frequent words" not in html


def test_bars_are_the_largest_counts_in_order() -> None:
    counts = {f"word {n}": n * n for n in range(30)}
    (axes,) = plots_video.ranked_counts(counts, "times").axes
    assert [bar.get_width() for bar in axes.patches] == [n * n for n in range(29, 9, -1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"word {n}" for n in range(29, 9, -1)]
    assert axes.yaxis_inverted()
    (axes,) = plots_video.ranked_counts({"$100": 1}, "times").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [r"\$100"]
