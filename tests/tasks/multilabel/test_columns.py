"""Labels as tables have them: what is read, and what has two readings."""

import json
from pathlib import Path

import pytest

from snella.data.readers.tables import manifest_table
from snella.errors import UserError
from snella.tasks.multilabel.columns import read_labels

ALL = {"0.png": {"cat", "dog"}, "1.png": {"dog"}, "2.png": set(), "3.png": {"cat"}}


def table(folder: Path, text: str, name: str = "t.csv"):
    path = folder / name
    path.write_text(text)
    return manifest_table(str(path), repeated=True)


def labels(folder: Path, text: str, *, column=None, separator=None, known=None, name="t.csv"):
    found = read_labels(table(folder, text, name), column, separator, known)
    return found.classes, {image: set(of) for image, of in found.of_image.items()}


SPELLINGS = {
    "semicolons": 'path,label\n0.png,cat; dog\n1.png,dog\n2.png,\n3.png,"cat"\n',
    "bars": "path,label\n0.png,cat|dog\n1.png,dog\n2.png,\n3.png,cat\n",
    "quoted commas": 'path,label\n0.png,"dog, cat"\n1.png,dog\n2.png,\n3.png,cat\n',
    "spaces": "path,label\n0.png,cat dog\n1.png,dog\n2.png,\n3.png,cat\n",
    "lists of Python": "path,label\n0.png,\"['cat', 'dog']\"\n1.png,['dog']\n2.png,[]\n3.png,['cat']\n",
    "rows": "path,label\n0.png,cat\n0.png,dog\n1.png,dog\n2.png,\n3.png,cat\n",
    "columns": "path,cat,dog\n0.png,1,1\n1.png,0,1\n2.png,0,0\n3.png,1,0\n",
    "columns of floats": "path,cat,dog\n0.png,1.0,1.0\n1.png,0.0,1.0\n2.png,0.0,0.0\n3.png,1.0,0.0\n",
    "columns of words": "path,cat,dog\n0.png,True,True\n1.png,False,True\n2.png,False,False\n3.png,True,False\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_labels(tmp_path: Path, spelling: str) -> None:
    assert labels(tmp_path, SPELLINGS[spelling]) == (("cat", "dog"), ALL)


def test_lists_and_bits_of_json(tmp_path: Path) -> None:
    lists = [{"path": name, "labels": sorted(of)} for name, of in ALL.items()]
    bits = [{"path": name, "cat": "cat" in of, "dog": int("dog" in of)} for name, of in ALL.items()]
    for rows in (lists, bits):
        text = "\n".join(map(json.dumps, rows))
        assert labels(tmp_path, text, name="t.jsonl") == (("cat", "dog"), ALL)


def test_titles_keep_their_case_and_order(tmp_path: Path) -> None:
    found = read_labels(table(tmp_path, "path,Zebra,Age,ant\na,1,7,1\nb,0,30,1\nc,0,4,0\n"), None, None)
    assert found.classes == ("Zebra", "ant")
    assert "columns that are no labels: Age" in found.notes[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\n0,golden retriever\n1,labrador retriever\n", "--label-separator 'space' (golden, retriever)"),
        ('path,label\n0,"a;b, c"\n1,"b, c"\n2,a\n', "3 readings of 'a;b, c'"),
        ('path,label\n0,"tea, green"\n1,coffee\n', "2 readings of 'tea, green'"),
        ("path,label,cat,dog\n0,x,1,0\n1,y,1,1\n", "two readings: the labels are in column label, or columns of 0 and"),
        ("path,cat,dog\n0,1,0\n1,0,1\n", "--task classify"),
        ("path,label\n0,cat\n1,dog\n", "--task classify"),
        ("path,label\n0,0\n1,1\n", "0 and 1 in column label are two classes"),
        ("path,cat,dog,cow\n0,1,1,\n1,0,1,0\n2,1,0,1\n", "line 2: cow is '' and neither 0 nor 1"),
        ("path,cat,dog,cow\n0,1,1,0\n1,0,1,-1\n2,1,0,1\n", "line 3: cow is '-1' and neither 0 nor 1"),
        ("path,label\n0,a;b\n1,nan\n2,b\n", "line 3: label is 'nan'"),
        ("path,kind,place\n0,a;b,x\n1,b,y\n", "several columns that may be labels: kind (2 values), place (2 values)"),
    ],
)
def test_two_readings_are_named_and_what_is_neither_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        labels(tmp_path, text)
    assert said in str(error.value)


def test_a_choice_ends_the_question(tmp_path: Path) -> None:
    text = "path,label\n0,golden retriever\n1,labrador retriever\n"
    assert labels(tmp_path, text, separator="none")[0] == ("golden retriever", "labrador retriever")
    assert labels(tmp_path, text, separator="space")[0] == ("golden", "labrador", "retriever")
    one_each = "path,cat,dog,male\n0,1,0,1\n1,0,1,0\n"
    assert labels(tmp_path, one_each, column="dog,cat") == (("dog", "cat"), {"0": {"cat"}, "1": {"dog"}})
    assert labels(tmp_path, one_each, column="1,2")[0] == ("cat", "dog")
    with pytest.raises(UserError, match=r"--label-column cow: .* has the columns cat, dog, male; name one"):
        labels(tmp_path, one_each, column="cat,cow")


def test_labels_of_a_trained_model_decide_where_a_small_table_could_not(tmp_path: Path) -> None:
    known = ("golden retriever", "cat", "dog")
    assert labels(tmp_path, "path,label\n0,golden retriever\n", known=known)[1] == {"0": {"golden retriever"}}
    assert labels(tmp_path, 'path,label\n0,"dog, cat"\n', known=known)[1] == {"0": {"cat", "dog"}}
    with pytest.raises(UserError, match="has no column 'golden retriever', a label of the model"):
        labels(tmp_path, "path,cat,dog\n0,1,1\n", known=known)
