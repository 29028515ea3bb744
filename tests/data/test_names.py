"""Which image or class a name means: every way to write it, and everything that must not match."""

import time
import unicodedata

import numpy as np
import pytest
from PIL import Image

from unlearn_jax.data import names, sources
from unlearn_jax.data.names import NONE, SEVERAL, Ids, find_images
from unlearn_jax.registry import UserError

CAFE = {form: unicodedata.normalize(form, "café/Ünï/1.png") for form in ("NFC", "NFD")}


def ids_of(*ids, root="", **splits):
    ranges = splits or {"train": range(len(ids))}
    return Ids(list(ids), ranges, root)


def read(tmp_path, text, ids, *, encoding="utf-8", where="request.file", **options):
    file = tmp_path / "list.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return find_images(file, ids, where, "photos", **options)


def refused(tmp_path, text, ids, **options):
    with pytest.raises(ValueError) as error:
        read(tmp_path, text, ids, **options)
    return str(error.value)


# One name.

FOLDERS = ids_of(
    "train/cat/1.png", "train/cat/11.png", "train/dog/1.png", "test/cat/1.png", "test/dog/2.png",
    root="/data/photos", train=range(3), test=range(3, 5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("train/cat/1.png", 0),
        ("./train/cat/1.png", 0),
        (".//train/./cat//1.png", 0),
        ("/data/photos/train/cat/1.png", 0),
        ("/mnt/other/place/train/dog/1.png", 2),
        ("photos/train/cat/11.png", 1),
        ("C:\\Users\\me\\photos\\train\\cat\\1.png", 0),
        ("train\\dog\\1.png", 2),
        ("..\\photos\\test\\cat\\1.png", 3),
        ("/home/test/photos/train/cat/1.png", 0),  # it has its own split in it
        # Never a part of an id, or more than one.
        ("cat/1.png", NONE),
        ("1.png", NONE),
        ("1", NONE),
        ("train/cat/1", NONE),
        ("train/cat/1.png.png", NONE),
        ("train/cat/1.png/", 0),  # a folder's slash says nothing else
        ("rain/cat/1.png", NONE),
        ("xtrain/cat/1.png", NONE),
        ("train/cat/01.png", NONE),
        ("train/cat/1.PNG", NONE),
        ("train/cat/1.png;1", NONE),
        ("train/cat/1.png 1", NONE),
        ("", NONE),
        ("/", NONE),
        (".", NONE),
        # Never another split's image of that name.
        ("val/cat/1.png", NONE),
        ("test/dog/1.png", NONE),
        ("train/dog/2.png", NONE),
        ("/data/photos/val/cat/1.png", NONE),
        ("/data/photos/test/train/cat/1.png", NONE),
        ("/data/photos/backup/train/cat/1.png", NONE),  # another file below the same folder
    ],
)
def test_an_image_is_meant_by_its_whole_id(name, row):
    assert FOLDERS.find(name) == row


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("cat/1.png", 0),
        ("train/cat/1.png", 0),
        ("/set/train_256/cat/1.png", 0),
        ("/set/training/cat/1.png", 0),
        ("/set/anything/cat/2.png", 1),
        ("val/cat/1.png", NONE),
        ("./val/cat/1.png", NONE),
        ("/set/val_256/cat/1.png", NONE),
        ("/set/validation/cat/1.png", NONE),
        ("Val/cat/1.png", NONE),
        ("valid/cat/1.png", NONE),
        ("test/cat/1.png", NONE),
        ("test\\cat\\1.png", NONE),
        ("val/animals/cat/1.png", NONE),
        ("train/val/cat/1.png", NONE),
        ("val/train/cat/1.png", 0),
    ],
)
def test_a_folder_of_another_split_before_the_id_is_refused(name, row):
    assert ids_of("cat/1.png", "cat/2.png").find(name) == row


def test_own_names_of_splits_count_too():
    ids = ids_of("a/1.png", "b/1.png", "a/2.png", spring=range(2), autumn=range(2, 3))
    assert ids.find("spring/a/1.png") == 0 and ids.find("autumn/a/2.png") == 2
    assert ids.find("autumn/a/1.png") == NONE and ids.find("/x/Spring/a/2.png") == NONE


FLAT = ids_of("1.png", "IMG_0002.JPG", root="/home/me/photos")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("1.png", 0), ("./1.png", 0), ("/home/me/photos/1.png", 0), ("photos/IMG_0002.JPG", 1),
        ("D:\\photos\\1.png", 0), ("/elsewhere/1.png", 0), ("11.png", NONE), ("val/1.png", NONE),
        ("val/cat/1.png", NONE), ("/home/me/photos/cat/1.png", NONE),
        ("/home/me/photos2/1.png", 0), ("IMG_0002", NONE), ("MG_0002.JPG", NONE),
    ],
)  # fmt: skip
def test_flat_folders_of_any_place(name, row):
    assert FLAT.find(name) == row


def test_relative_data_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for root in ("real", "./real", "real/", str(tmp_path / "real"), "link", "../" + tmp_path.name):
        ids = ids_of("cat/1.png", root=root)
        assert ids.find("cat/1.png") == 0
        above = root.rstrip("/")
        assert ids.find(f"{above}/cat/1.png") == 0
        assert ids.find(f"{above}/old/cat/1.png") == NONE
        assert ids.find(f"{(tmp_path / root).resolve()}/cat/1.png") == 0
        assert ids.find(f"{(tmp_path / root).resolve()}/old/cat/1.png") == NONE


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_composed_and_decomposed_letters_are_the_same(stored, written):
    assert CAFE["NFC"] != CAFE["NFD"]
    ids = ids_of("a/1.png", CAFE[stored], root="/Fotos/é")
    assert ids.find(CAFE[written]) == ids.find("/x/" + CAFE[written]) == 1
    assert ids.find(unicodedata.normalize(written, "/Fotos/é/") + CAFE[written]) == 1
    # Both on one disk: each is meant as it is written, and by nothing else.
    both = ids_of(CAFE["NFC"], CAFE["NFD"])
    assert both.find(CAFE["NFC"]) == 0 and both.find(CAFE["NFD"]) == 1
    assert both.find("/x/" + CAFE[written]) == SEVERAL


def test_names_of_several_ids_mean_none_unless_they_are_whole():
    ids = ids_of("1.png", "cat/1.png", "cat/2.png")
    assert ids.find("1.png") == 0 and ids.find("cat/1.png") == ids.find("./cat/1.png") == 1
    assert ids.find("/x/cat/1.png") == SEVERAL and ids.find("/x/cat/2.png") == 2


def test_folders_of_published_splits_are_one_split():
    ids = ids_of(
        "train_256/a/attic/1.jpg", "train_256/b/bar/2.jpg", "val_256/a/attic/1.jpg",
        train=range(2), validation=range(2, 3),
    )  # fmt: skip
    for folder in ("train", "data_256", "data_256_standard", "train_large", "data_large"):
        assert ids.find(f"/root/{folder}/a/attic/1.jpg") == 0
        assert ids.find(f"{folder}/b/bar/2.jpg") == 1
    for folder in ("val", "val_large", "validation"):
        assert ids.find(f"{folder}/a/attic/1.jpg") == 2
        assert ids.find(f"{folder}/b/bar/2.jpg") == NONE
    for name in ("test_256/a/attic/1.jpg", "a/attic/1.jpg", "attic/1.jpg", "b/bar/2.jpg", "2.jpg"):
        assert ids.find(name) == NONE
    # Not if both are splits of this data set.
    own = ids_of("train/1.png", "train_large/2.png", train=range(1), train_large=range(1, 2))
    assert own.find("train/2.png") == own.find("train_large/1.png") == NONE
    assert own.find("/x/train_large/2.png") == 1


def test_ids_that_are_no_paths():
    ids = ids_of(*(f"train_{i:05d}" for i in range(0, 100, 2)), "test_00007",
                 train=range(50), test=range(50, 51))  # fmt: skip
    assert ids.find("train_00042") == 21 and ids.find("test_00007") == 50
    for name in ("train_99999", "train_00043", "train_42", "train_00042;1", "train_00042.png",
                 "train_000420", "TRAIN_00042", "train_", "train", "test_00008", "train_00042,1",
                 "test/train_00042"):  # fmt: skip
        assert ids.find(name) == NONE, name


def test_random_names_are_found_like_by_comparing_all():
    """An independent definition: the ids that the cleaned path is, or ends in after a slash."""
    rng = np.random.default_rng(0)
    pick = lambda n: "/".join(rng.choice(["a", "b", "1.png", "11.png"], n))  # noqa: E731
    for _ in range(60):
        known = sorted({pick(rng.integers(1, 4)) for _ in range(rng.integers(1, 12))})
        ids = ids_of(*known)
        for _ in range(60):
            name = pick(rng.integers(1, 6))
            ending = [k for k, id in enumerate(known) if f"/{name}".endswith(f"/{id}")]
            expected = ending[0] if len(ending) == 1 else SEVERAL if ending else NONE
            assert ids.find(f"x/{name}") == expected, (name, known)
            expected = known.index(name) if name in known else expected
            assert ids.find(name) == expected, (name, known)


# Lists.

CATS = ids_of("cat/1.png", "cat/2.png", "cat/a b.png", 'cat/say "x".png', "dog/3,4.png")
PLAIN = "cat/2.png\ncat/1.png\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "\n\n  cat/2.png  \n# cat/a b.png\n\t# more\ncat/1.png",
        "cat/2.png\r\ncat/1.png\r\n",
        "cat/2.png\rcat/1.png",
        '"cat/2.png"\n"cat/1.png"\n',
        "id\ncat/2.png\ncat/1.png",
        "# made by hand\nfile name\ncat/2.png\ncat/1.png",
        "filename\ncat/2.png\ncat/1.png",
        "IDS\ncat/2.png\ncat/1.png",
        "ImageId,score\ncat/2.png,1\ncat/1.png,2\n",
        "score;Image Path;why\n1;cat/2.png;\n;cat/1.png;it's me\n",
        "n\timg_path\n1\tcat/2.png\n2\tcat/1.png\n",
        'label,Path\n1,"cat/2.png"\n\n# x\n2, cat/1.png\n',
        'why,photo\n"a\nb, c",cat/2.png\n"say ""x""",cat/1.png\n',
        "person,photos\nA,cat/2.png\nB,./cat/1.png",
        "image,file\n1,cat/2.png\n2,cat/1.png",  # by their content
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-mark"])
def test_lists_and_tables_however_they_are_saved(tmp_path, text, encoding):
    data = text.encode(encoding.removesuffix("-mark"))
    data = b"\xff\xfe" + data if encoding.endswith("-mark") else data
    rows, record = read(tmp_path, data, CATS)
    assert rows.tolist() == [1, 0] and rows.dtype == np.int64
    assert record["named"] == 2 and record["repeated"] == 0


def test_names_with_quotes_commas_and_spaces(tmp_path):
    text = 'cat/a b.png\ncat/say "x".png\n"cat/say ""x"".png"\ndog/3,4.png\n'
    assert read(tmp_path, text, CATS)[0].tolist() == [2, 3, 4]
    table = 'id,n\n"cat/say ""x"".png",1\n"dog/3,4.png",2\n'
    assert read(tmp_path, table, CATS)[0].tolist() == [3, 4]


def test_an_image_named_twice_counts_once_and_paths_are_mentioned(tmp_path):
    rows, record = read(tmp_path, "cat/2.png\ncat/1.png\n/x/cat/2.png\ncat/2.png\n", CATS)
    assert rows.tolist() == [1, 0]
    example = ["/x/cat/2.png", "cat/2.png"]
    assert record == {"named": 4, "repeated": 2, "by_path": 1, "example": example}
    assert read(tmp_path, PLAIN, CATS)[1] == {"named": 2, "repeated": 0, "by_path": 0}


def test_hash_signs_are_comments_only_where_no_id_begins_with_one(tmp_path):
    ids = ids_of("#1.png", "2.png")
    assert read(tmp_path, "#1.png\n2.png", ids)[0].tolist() == [0, 1]
    assert "line 1: '# mine'" in refused(tmp_path, "# mine\n2.png", ids)
    assert read(tmp_path, "# mine\n2.png", ids_of("1.png", "2.png"))[0].tolist() == [1]
    ids = ids_of("#cat/1.png", "dog/#2.png")
    assert read(tmp_path, "id;n\n#cat/1.png;1\ndog/#2.png;2", ids)[0].tolist() == [0, 1]


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "id\n", "id,label\n\n", "\ufeff"])
def test_lists_of_nothing(tmp_path, text):
    rows, record = read(tmp_path, text, CATS)
    assert not len(rows) and rows.dtype == np.int64 and record["named"] == 0


def test_unmatched_names_are_counted_and_located_with_the_nearest_ids(tmp_path):
    text = "".join(f"cat/{i}.png\n" for i in range(1, 30))
    message = refused(tmp_path, "# x\n\n" + text, CATS)
    assert message.startswith("request.file: 27 of the 29 names in ")
    assert "list.txt are no examples of photos:\n  line 5: 'cat/3.png'" in message
    assert message.count("\n  line") == 10 and "\n  and 17 more" in message
    assert "line 14: 'cat/12.png' (nearest: 'cat/2.png')" in message
    table = refused(tmp_path, "n,id\n\n1,cat/1.png\n2,cat/7.png", CATS)
    assert "1 of the 2 names" in table and "line 4: 'cat/7.png'" in table


def test_names_that_look_alike_are_shown_so_that_they_differ(tmp_path):
    ids = ids_of("cat/caf\u00e9s.png", "cat/1.png", "cat/2.png", root="/photos")
    message = refused(tmp_path, "cat/c\u0430f\u00e9s.png", ids)  # a Cyrillic letter
    assert r"line 1: 'cat/c\u0430f\xe9s.png' (nearest: 'cat/caf\xe9s.png')" in message
    assert message.isascii()
    assert "another file than 'cat/1.png'" in refused(tmp_path, "val/cat/1.png", ids)
    assert "(nearest: 'cat/1.png')" in refused(tmp_path, "cta/1.png", ids)
    both = ids_of("1.png", "cat/1.png")
    assert "it ends in several ids" in refused(tmp_path, "/x/cat/1.png", both)


# A header must not swallow a name that is not found: it would be forgotten by nobody, silently.
@pytest.mark.parametrize(
    ("ids", "text", "wrong"),
    [
        (["IMG_0001.JPG"], "IMG_9999.JPG\nIMG_0001.JPG", "IMG_9999.JPG"),
        (["IMG_0001"], "IMG_9999\nIMG_0001", "IMG_9999"),
        (["images/cat/1.png"], "images/cat/2.png\nimages/cat/1.png", "images/cat/2.png"),
        (["photo-cat", "photo-dog"], "photo-cot\nphoto-dog", "photo-cot"),
        (["photo-cat.png", "b.png"], "photo-cot.png\nb.png", "photo-cot.png"),
        (["photo_1", "photo_2"], "photo_3,1\nphoto_1,1", "photo_3,1"),
        (["photo-a", "photo-b"], "photo-a,1\nphoto-b,1", "photo-a,1"),
        (["name"], "nome\nname", "nome"),
        (["a\\file.png", "b"], "A\\file.png\nb", r"A\\file.png"),
    ],
)
def test_a_first_name_that_is_wrong_is_no_header(tmp_path, ids, text, wrong):
    assert f"line 1: '{wrong}'" in refused(tmp_path, text, ids_of(*ids))


def test_an_id_that_is_a_word_of_headers_is_an_id(tmp_path):
    assert read(tmp_path, "image\npath", ids_of("path", "image"))[0].tolist() == [1, 0]


def test_which_column_is_asked_for_where_it_cannot_be_told(tmp_path):
    text = "image_id,path\ncat/1.png,/x/cat/2.png\n"
    message = refused(tmp_path, text, CATS)
    assert "['image_id', 'path'] could be it. Say which, with request.column" in message
    assert read(tmp_path, text, CATS, column="path")[0].tolist() == [1]
    assert read(tmp_path, text, CATS, column="image_id")[0].tolist() == [0]
    assert "retain.column" in refused(tmp_path, text, CATS, where="retain.file")
    message = refused(tmp_path, text, CATS, column="Path")
    assert "request.column" in message and "no column 'Path', only ['image_id', 'path']" in message
    # A header that nobody could recognise.
    assert read(tmp_path, "wer,Bild\nich,cat/2.png", CATS, column="Bild")[0].tolist() == [1]
    assert read(tmp_path, "Bild\ncat/2.png", CATS, column="Bild")[0].tolist() == [1]
    message = refused(tmp_path, "wer,Bild\nich,cat/2.png", CATS)
    assert "2 of the 2 names" in message and "a table needs a header" in message


def test_damaged_tables_are_named(tmp_path):
    message = refused(tmp_path, "id,label\ncat/1.png,1\n\ncat/2.png\n", CATS)
    assert "line 4: expected 2 columns as in ['id', 'label'], got ['cat/2.png']" in message
    assert "is no table" in refused(tmp_path, 'id,n\n"cat/1.png,1\n', CATS)
    assert "is no table: field larger" in refused(tmp_path, f"id,n\n{'x' * 200_000},1", CATS)
    assert "request.file: " in refused(tmp_path, "x" * 200_000, CATS)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", "cat/1.png".encode("utf-16-le"), b"\x89PNG\0\0"])
def test_files_that_are_no_text_are_refused(tmp_path, data):
    assert "request.file: " in refused(tmp_path, data, CATS)
    assert "is no readable UTF-8 file" in refused(tmp_path, data, CATS)
    assert r"line 1: 'caf\udce9.png' (" in refused(tmp_path, b"caf\xe9.png\n", CATS)


def test_missing_files_and_folders_are_no_lists(tmp_path):
    for path in (tmp_path, tmp_path / "none.txt", "/dev/zero", "/dev/null"):
        with pytest.raises(ValueError, match="request.file: .*no readable.*there is no such file"):
            find_images(path, CATS, "request.file", "photos")


@pytest.mark.parametrize(("role", "rows"), [("forget", [1]), ("retain", [0]), ("", [1, 0])])
def test_signs_of_released_tables(tmp_path, role, rows):
    text = "imgs,labels\n/a/cat/2.png,-100.0\n/a/cat/1.png,100.0\n"
    assert read(tmp_path, text, CATS, role=role)[0].tolist() == rows
    # Of another table, labels are only labels.
    assert read(tmp_path, text.replace("imgs", "path"), CATS, role=role)[0].tolist() == [1, 0]


def test_images_on_disk_are_found_by_all_their_paths(tmp_path, monkeypatch):
    """As a user would: `ls`, `find`, a file manager on macOS, with and without class folders."""
    root = tmp_path / "photos"
    for id in ("animals/1.png", "animals/2.png", unicodedata.normalize("NFD", "familie/Zoë.png")):
        (root / id).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / id)
    monkeypatch.chdir(tmp_path)
    options = {"kind": "folder", "image_size": 8, "splits": ("train",)}
    for path in ("photos", str(root), "./photos/"):
        ids = names.ids_of(sources.open_source(path=path, **options))
        for prefix in ("", "./", f"{root}/", "photos/", "./photos/"):
            for form in ("NFC", "NFD"):
                zoe = unicodedata.normalize(form, "familie/Zoë.png")
                rows, _ = read(tmp_path, f"{prefix}animals/2.png\n{prefix}{zoe}\n", ids)
                assert rows.tolist() == [1, 2]
        for wrong in ("photos/2.png", "./2.png", f"{root}/2.png", "2.png", "nimals/2.png"):
            assert "1 of the 1 names" in refused(tmp_path, wrong, ids)
    for path in ("photos/animals", str(root / "animals")):  # flat
        ids = names.ids_of(sources.open_source(path=path, **options))
        for prefix in ("", "./", f"{root}/animals/", "photos/animals/", "animals/"):
            assert read(tmp_path, f"{prefix}2.png", ids)[0].tolist() == [1]
        for wrong in (f"{root}/animals/old/2.png", f"{root}/val/2.png", "animals/22.png"):
            assert "1 of the 1 names" in refused(tmp_path, wrong, ids)


# Classes.


def classes_of(*class_names, per_class=2):
    labels = np.repeat(np.arange(len(class_names)), per_class)
    ids = [f"{class_names[c]}/{i}.png" for i, c in enumerate(labels)]
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    return sources.from_arrays(images, labels, ids=ids, class_names=class_names, name="zoo")


NUMBERS = classes_of(*sorted(str(i) for i in range(12)))  # as folders are: 0, 1, 10, 11, 2, ...


@pytest.mark.parametrize("number", range(12))
def test_numbers_that_are_folders_mean_the_folder(number):
    for written in (number, str(number), f"/{number}"):
        label = names.label_of(NUMBERS, written, "request.classes")
        assert NUMBERS.class_names[label] == str(number)


def test_numbers_that_are_no_names_are_labels():
    zoo = classes_of("ant", "bee", "cow", "7")
    found = names.labels_of(zoo, (2, "0", "7", "/cow"), "request.classes")
    assert found == {"2": 2, "0": 0, "7": 3, "/cow": 2}
    assert names.label_of(zoo, 3, "x") == 3  # by its label
    for wrong in ("4", 4, -1, "-1", "1.0", "02", "00", "+1", "1_0", "²", "١", True, 10**30, ""):
        with pytest.raises(ValueError, match="zoo has no class .*is a label, 0..3"):
            names.label_of(zoo, wrong, "request.classes")


def test_a_number_with_zeros_before_it_is_not_guessed():
    for wrong in ("02", "002", "011"):
        with pytest.raises(ValueError, match=f"request.classes: .*no class '{wrong}'"):
            names.label_of(NUMBERS, wrong, "request.classes")


def test_classes_from_a_command_line_are_split_at_commas_unless_that_is_a_name():
    zoo = classes_of("cat", "dog", "owl", "a, b", "10", "2")
    of = lambda *given: list(names.labels_of(zoo, given, "x").values())  # noqa: E731
    assert of("cat,dog") == of("cat, dog") == of("cat", "dog") == of(" cat,", "dog") == [0, 1]
    assert of("a, b") == [3] and of("2,10") == [5, 4] and of("0,10") == [0, 4]
    assert names.labels_of(zoo, ("cat", "cat,owl", 0), "x") == {"cat": 0, "owl": 2, "0": 0}
    for wrong in ("a,b", "cat,dgo", ",", ""):
        with pytest.raises(ValueError, match="x: zoo has no class"):
            of(wrong)
    with pytest.raises(ValueError, match=r'x: expected names, as \("cat",\), got'):
        names.labels_of(zoo, "cat", "x")


def test_class_names_in_both_forms():
    nfc, nfd = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    for stored in (nfc, nfd):
        zoo = classes_of("ant", stored)
        assert names.label_of(zoo, nfc, "x") == names.label_of(zoo, nfd, "x") == 1
    both = classes_of(nfd, nfc)
    assert names.label_of(both, nfd, "x") == 0 and names.label_of(both, nfc, "x") == 1


def test_what_was_understood_is_said_with_the_images_there_are():
    labels = names.labels_of(NUMBERS, (2, "10"), "x")
    assert names.explain(NUMBERS, labels, np.arange(12)) == [
        "class 2: folder '2', label 4, 2 images",
        "class 10: folder '10', label 2, 2 images",
    ]
    arrays = sources.from_arrays(
        np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 1, 1]), class_names=["cat", "dog"]
    )
    said = names.explain(arrays, names.labels_of(arrays, (1,), "x"), np.arange(3))
    assert said == ["class 1: class 'dog', label 1, 2 images"]


def test_a_cell_over_several_lines_may_have_a_line_that_starts_with_a_sign(tmp_path):
    ids = names.Ids(["cat/1.png", "cat/2.png"])
    text = 'note,path\n# a comment\n"two lines\n# of a note",cat/2.png\n#left out,cat/1.png\n'
    assert names.read_names(text, "x.csv", ids) == [("cat/2.png", 4)]


def test_rows_of_the_other_role_are_counted(tmp_path):
    (tmp_path / "x.csv").write_text("imgs,labels\ncat/1.png,-1\ncat/2.png,1\ncat/1.png,2\n")
    ids = names.Ids(["cat/1.png", "cat/2.png"])
    rows, read = names.find_images(tmp_path / "x.csv", ids, "request.file", "d", role="forget")
    assert rows.tolist() == [0] and read["of_another_role"] == 2 and read["named"] == 1
    _, read = names.find_images(tmp_path / "x.csv", ids, "request.file", "d")
    assert "of_another_role" not in read


def test_a_path_of_thousands_of_folders_is_looked_up_at_once(tmp_path):
    (tmp_path / "list.txt").write_text("a/" * 60_000 + "train/cat/1.png\n" + "b/" * 60_000)
    start = time.monotonic()
    rows = ids_of("train/cat/1.png")
    assert rows.find("a/" * 60_000 + "train/cat/1.png") == 0
    with pytest.raises(UserError, match="1 of the 2 names"):
        names.find_images(tmp_path / "list.txt", rows, "--list", "x")
    assert time.monotonic() - start < 5
