import yaml

from opir_lightning.checkpoints import read_header
from opir_lightning.model_card import write_card


def card(metadata, *, tasks=("none", "rain", "low_light"), license_name="other"):
    return write_card("me/net", tasks=tasks, parameters=1_234_567, metadata=metadata, license_name=license_name)


def front_matter(text):
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def section(text, title):
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_front_matter_is_what_the_hub_sorts_by():
    assert front_matter(card({})) == {
        "license": "other",
        "library_name": "opir-lightning",
        "pipeline_tag": "image-to-image",
        "tags": ["image-restoration", "opir", "deraining", "low-light-enhancement"],
    }


def test_names_with_a_meaning_in_yaml_stay_names():
    front = front_matter(card({}, tasks=["no", "it's: - [x]\n---"], license_name="no"))
    assert front["license"] == "no"
    assert front["tags"][2:] == ["no", "it's: - [x] ---"]


def test_the_card_of_packaged_weights_tells_data_recipe_scores_and_where_they_fail():
    header = read_header("opir_small")
    text = card(header.metadata, tasks=header.settings["tasks"])
    training = section(text, "Training")
    assert f"- data: {header.metadata['data']}" in training
    assert f"- training crops: {header.metadata['crops']}" in training
    assert f"- seed: {header.metadata['seed']}" in training
    psnr = header.metadata["psnr"]
    assert f"| CBSD68-sigma25 | 20.54 | {psnr['CBSD68-sigma25'][1]:.2f} |" in section(text, "Scores")
    assert f"| Set5-undamaged |  | {psnr['Set5-undamaged'][1]:.2f} |" in section(text, "Scores")
    limits = section(text, "What it cannot do")
    assert f"PolyU is not restored: 36.13 dB before, {psnr['PolyU'][1]:.2f} dB after." in limits
    assert "CBSD68-sigma25" not in limits
    assert "1,234,567" in text


def test_what_the_header_does_not_tell_is_left_out():
    text = card({})
    assert "## Use" in text
    for title in ("Training", "Scores", "What it cannot do"):
        assert f"## {title}" not in text


def test_other_forms_of_metadata_make_a_card_too():
    text = card({"psnr": 27.5, "limits": "Snow\nstays.", "init": "/home/me/secret/last.ckpt", "steps": None})
    assert "| all test sets |  | 27.50 |" in text
    assert "- Snow stays." in section(text, "What it cannot do")
    assert "- started from: last.ckpt" in text
    assert "secret" not in text
    assert "- steps" not in text
    text = card({"psnr": {"a|b": 20, "odd": ["x", 1], "strange": {"deep": 1}}})
    assert "| a\\|b |  | 20.00 |" in text
    assert "odd" not in text
    assert "strange" not in text
