"""What a user's file does before and after a model, and what is said when it cannot."""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tauten.core.tensor import TensorSpec
from tauten.errors import ConfigError, EngineError, InputError
from tauten.run.serve.dry_run import dry_run
from tauten.run.serve.handler import HandledEngine, with_handler
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.elements import BytesSpec, to_objects
from tests.unit.serve.artifacts import null_artifact
from tests.unit.serve.tiny import Double, Same, ask, running, tensor

HEAD = """
import numpy as np
from tauten.core.tensor import TensorSpec
from tauten.run.serve.protocol.elements import BytesSpec
"""
WORDS = (
    HEAD
    + """
inputs = [BytesSpec(name="words", shape=("batch",))]
outputs = [BytesSpec(name="answer", shape=("batch",)), TensorSpec(name="letters", shape=("batch",), dtype="int64")]

def before(inputs):
    return {"x": np.array([[len(word), 0, 1] for word in inputs["words"]])}

def after(outputs, inputs):
    totals = outputs["total"].astype(int).tolist()
    return {
        "answer": [f"{word.decode()} {total}" for word, total in zip(inputs["words"], totals)],
        "letters": [len(word.decode()) for word in inputs["words"]],
    }
"""
)
WORDS_EACH = (
    HEAD
    + """
inputs = [BytesSpec(name="words", shape=("batch",))]
outputs = [BytesSpec(name="answer", shape=("batch",)), TensorSpec(name="letters", shape=("batch",), dtype="int64")]

def before_each(sample):
    return {"x": [len(sample["words"]), 0, 1]}

def after_each(answers, sample):
    word = sample["words"].decode()
    return {"answer": f"{word} {int(answers['total'])}", "letters": len(word)}
"""
)


def handled(folder: Path, text: str) -> HandledEngine:
    path = folder / "prep.py"
    path.write_text(text, "utf-8")
    engine = with_handler(Double(), path)
    assert isinstance(engine, HandledEngine)
    return engine


def words(*texts: str) -> dict[str, np.ndarray]:
    return {"words": to_objects([text.encode() for text in texts], (len(texts),))}


@pytest.mark.parametrize("text", [WORDS, WORDS_EACH], ids=["a batch at once", "each sample"])
def test_texts_go_in_and_come_out(tmp_path: Path, text: str) -> None:
    engine = handled(tmp_path, text)
    assert engine.inputs == (BytesSpec(name="words", shape=("batch",)),)
    assert [spec.name for spec in engine.outputs] == ["answer", "letters"]
    answers = engine(words("four", "", "größe"))
    assert answers["answer"].tolist() == [b"four 5", b" 1", "größe 8".encode()]
    assert answers["letters"].tolist() == [4, 0, 5]
    assert answers["letters"].dtype == np.int64


def test_either_function_alone_leaves_the_other_side_as_it_is(tmp_path: Path) -> None:
    x = np.ones((2, 3), np.float32)
    before = handled(tmp_path, "def before(inputs):\n    return {'x': inputs['x'] * 10}")
    assert (before.inputs, before.outputs) == (Double().inputs, Double().outputs)
    assert before({"x": x})["total"].tolist() == [30, 30]
    after = handled(tmp_path, "def after(outputs):\n    return {**outputs, 'total': outputs['total'] + 0.5}")
    assert after({"x": x})["total"].tolist() == [3.5, 3.5]


def test_numbers_are_taken_in_the_model_s_type_where_they_mean_the_same(tmp_path: Path) -> None:
    def total(expression: str) -> float:
        engine = handled(tmp_path, f"{HEAD}\ndef before(inputs):\n    return {{'x': {expression}}}")
        return float(engine({"x": np.zeros((1, 3), np.float32)})["total"][0])

    assert total("[[1, 2, 3]]") == 6
    assert total("np.ones((1, 3), np.float64)") == 3
    assert total("np.ones((1, 3), '>f4')") == 3
    for wrong, says in (
        ("np.ones((1, 3), np.complex64)", "expected float32, got complex64"),
        ("[['a', 'b', 'c']]", "expected float32, got str"),
        ("[[1, 2], [3]]", "inhomogeneous"),
        ("np.ones((1, 4))", "expected shape (batch, 3), got (1, 4)"),
        ("np.ones((2, 3))", "made 2 samples of 1"),
    ):
        with pytest.raises(EngineError) as caught:
            total(wrong)
        assert says in str(caught.value)
        assert str(caught.value).startswith("prep.py: before()")


def test_an_answer_that_does_not_fit_is_told(tmp_path: Path) -> None:
    for answer, says in (
        ("None", "after() should give a dict with ['label'], it gave a NoneType"),
        ("{'other': 1}", "after() should give a dict with ['label'], it gave ['other']"),
        ("{'label': [300]}", "label: a number lies outside the range of uint8"),
        ("{'label': [1.5]}", "label: expected uint8, got float64"),
        ("{'label': 1}", "label: expected shape (batch,), got ()"),
    ):
        engine = handled(
            tmp_path,
            f"{HEAD}\noutputs = [TensorSpec(name='label', shape=('batch',), dtype='uint8')]\n"
            f"def after(outputs):\n    return {answer}",
        )
        with pytest.raises(EngineError) as caught:
            engine({"x": np.zeros((1, 3), np.float32)})
        assert says in str(caught.value)
    texts = handled(
        tmp_path,
        f"{HEAD}\noutputs = [BytesSpec(name='label', shape=('batch',))]\ndef after(o):\n    return {{'label': [5]}}",
    )
    with pytest.raises(EngineError, match="label: expected bytes or strings, got a int"):
        texts({"x": np.zeros((1, 3), np.float32)})


def test_inputs_are_held_against_what_the_handler_declares(tmp_path: Path) -> None:
    engine = handled(tmp_path, WORDS)
    for wrong in (
        {},
        {"x": np.zeros((1, 3), np.float32)},
        {"words": np.zeros(1)},
        {"words": to_objects([b"a"], (1, 1))},
        {**words("a"), "more": np.zeros(1)},
    ):
        with pytest.raises(InputError):
            engine(wrong)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "expected a function before, before_each, after or after_each, found none of them"),
        ("before = 3", "expected before to be a function, got a int"),
        ("async def before(inputs): ...", "expected before to be a function, got an async function"),
        ("def before(): ...", "expected before to take 1 arguments, it takes 0"),
        ("def after(a, b, c): ...", "expected after to take 1 or 2 arguments, it takes 3"),
        ("def before(i): ...\ndef before_each(i): ...", "expected before or before_each, found both"),
        ("inputs = [1]\ndef before(i): ...", "expected inputs to be a list of TensorSpec and BytesSpec, got [1]"),
        (
            f"{HEAD}inputs = [BytesSpec(name='a', shape=())] * 2\ndef before(i): ...",
            "of distinct names, got ['a', 'a']",
        ),
        (f"{HEAD}inputs = [BytesSpec(name='a', shape=())]\ndef after(i): ...", "declares inputs, and has no function"),
        (
            f"{HEAD}outputs = [BytesSpec(name='a', shape=())]\ndef before(i): ...",
            "declares outputs, and has no function",
        ),
        (f"{HEAD}inputs = [BytesSpec(name='a', shape=())]\ndef before_each(i): ...", "before_each takes samples"),
        ("import nothing_like_it", "prep.py does not load (line 1: import nothing_like_it): ModuleNotFoundError"),
    ],
)
def test_a_file_that_is_no_handler_says_why(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        handled(tmp_path, text)
    assert says in str(caught.value)
    assert "prep.py" in str(caught.value)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        with_handler(Double(), tmp_path / "none.py")
    assert with_handler(engine := Double(), None) is engine


def test_a_model_without_a_batch_has_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "prep.py"
    path.write_text("def before_each(sample):\n    return sample", "utf-8")
    with pytest.raises(ConfigError, match="before_each takes samples, and the model has no batch of them"):
        with_handler(Same([TensorSpec(name="x", shape=(3,))]), path)


def test_it_finds_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "handler_neighbour.py").write_text("TEN = 10", "utf-8")
    engine = handled(
        tmp_path, "def before(inputs):\n    from handler_neighbour import TEN\n    return {'x': inputs['x'] * TEN}"
    )
    try:
        assert engine({"x": np.ones((1, 3), np.float32)})["total"].tolist() == [30]
    finally:
        sys.modules.pop("handler_neighbour", None)
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "def before(inputs):\n    y = inputs['x']\n    return int('seven')",
            "prep.py: before() failed (line 3: return int('seven')): ValueError: invalid literal for int() with base "
            "10: 'seven'; it was tried on zeros: give it a function example() that returns inputs",
        ),
        (
            "def after(outputs):\n    return outputs['y']",
            "prep.py: after() failed (line 2: return outputs['y']): KeyError",
        ),
        (
            "def before(inputs):\n    return inputs\ndef example():\n    return {'y': 1}",
            "prep.py: example() should give a dict with ['x'], it gave ['y']",
        ),
        (
            "def before(inputs):\n    return inputs\ndef example():\n    raise RuntimeError('none')",
            "prep.py: example() failed (line 4: raise RuntimeError('none')): RuntimeError: none",
        ),
    ],
)
def test_the_dry_run_names_file_function_and_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(EngineError) as caught:
        dry_run(handled(tmp_path, text), "model 'm'")
    assert says in str(caught.value)
    assert str(caught.value).startswith("model 'm' does not answer its handler's example: ")


def test_the_dry_run_takes_the_example(tmp_path: Path) -> None:
    picky = "def before(inputs):\n    if not inputs['x'].all():\n        raise ValueError('zero')\n    return inputs\n"
    with pytest.raises(EngineError, match="zero"):
        dry_run(handled(tmp_path, picky))
    dry_run(handled(tmp_path, picky + "def example():\n    return {'x': [[1, 2, 3]]}"))


def test_a_server_asks_the_handler_about_a_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = WORDS.replace("def before(inputs):", "def before(inputs):\n    check(inputs)") + (
        "\ndef check(inputs):\n"
        "    for word in inputs['words']:\n"
        "        if word == b'bad': raise ValueError('bad is no word')\n"
        "        if word == b'bug': raise KeyError('a secret')\n"
    )
    infer = "/v2/models/m/infer"
    with running(handled(tmp_path, text)) as server:
        metadata = ask(server.port, "GET", "/v2/models/m").json()
        assert metadata["inputs"] == [{"name": "words", "datatype": "BYTES", "shape": [-1]}]
        config = ask(server.port, "GET", "/v2/models/m/config").json()
        assert config["input"][0]["data_type"] == "TYPE_STRING"

        def request(*texts: object) -> dict[str, object]:
            return {"inputs": [tensor("words", "BYTES", [len(texts)], list(texts))]}

        reply = ask(server.port, "POST", infer, request("four", "größe"))
        assert reply.status == 200
        assert [output["data"] for output in reply.json()["outputs"]] == [["four 5", "größe 8"], [4, 5]]
        reply = ask(server.port, "POST", infer, request("bad"))
        assert (reply.status, reply.json()) == (400, {"error": "bad is no word"})
        with caplog.at_level(logging.ERROR):
            reply = ask(server.port, "POST", infer, request("bug"))
        assert (reply.status, reply.json()) == (500, {"error": "prep.py: before() failed: the server's log says how"})
        assert "a secret" in caplog.text
        assert "in check" in caplog.text
        # A body of its own is one element.
        raw = ask(server.port, "POST", infer, b"\xffword", {"Inference-Header-Content-Length": "0"})
        assert raw.status == 400  # after() cannot read it as text
        raw = ask(server.port, "POST", infer, b"word", {"Inference-Header-Content-Length": "0"})
        assert b"\x06\x00\x00\x00word 5" in raw.body
        for wrong in (request(5), request(None), {"inputs": [tensor("words", "BYTES", [2], ["a"])]}):
            assert ask(server.port, "POST", infer, wrong).status == 400


def test_one_that_a_batch_cannot_take_spoils_no_other_s_answer(tmp_path: Path) -> None:
    text = (
        "import time\n"
        "def before(inputs):\n"
        "    first = inputs['x'][:, 0]\n"
        "    if (first == 7).any(): time.sleep(0.2)\n"  # meanwhile others gather
        "    if (first == 9).any(): raise ValueError('nine')\n"
        "    return inputs\n"
    )
    replies: dict[int, tuple[int, object]] = {}
    with running(handled(tmp_path, text), run_in="thread") as server:

        def post(number: int) -> None:
            request = {"inputs": [tensor("x", "FP32", [1, 3], [number, 0, 0])]}
            reply = ask(server.port, "POST", "/v2/models/m/infer", request)
            replies[number] = (reply.status, reply.json())

        threads = [threading.Thread(target=post, args=(number,)) for number in (7, 1, 9, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert replies.pop(9) == (400, {"error": "nine"})
    assert {number: status for number, (status, _) in replies.items()} == {7: 200, 1: 200, 2: 200, 3: 200}


def test_requests_with_more_rows_than_a_batch_are_cut_between_elements(tmp_path: Path) -> None:
    engine = handled(tmp_path, WORDS)
    with running(engine) as server:
        texts = [f"word{'x' * (number % 7)}" for number in range(100)]  # 32 rows at once
        request = {"inputs": [tensor("words", "BYTES", [100], texts)]}
        reply = ask(server.port, "POST", "/v2/models/m/infer", request)
        assert reply.json()["outputs"][1]["data"] == [len(text) for text in texts]


def test_a_model_of_an_artifact_takes_a_handler(tmp_path: Path) -> None:
    path = null_artifact(tmp_path / "nothing")
    handler = tmp_path / "prep.py"
    handler.write_text("def after(outputs):\n    return {'y': outputs['y'] + 3}", "utf-8")
    model = ServedModel.load(path, handler=handler)
    assert model.engine({"x": np.zeros((2, 3), np.float32)})["y"].tolist() == [3, 3]
    other = ServedModel.load(path)
    assert model.digest == other.digest
    assert model.handler_digest != other.handler_digest
    assert model.engine.describe() == {"engine": "null", "handler": "prep.py"}
    assert json.loads(json.dumps(model.engine.describe()))
    model.engine.close()


def test_the_example_reads_pictures(tmp_path: Path) -> None:
    class Brightest(Same):
        """Ten scores of which that of the digit as bright as the first pixel is the highest."""

        def __init__(self) -> None:
            super().__init__([TensorSpec(name="image", shape=("batch", 1, 8, 8))])
            self.outputs = (TensorSpec(name="output", shape=("batch", 10)),)

        def run(self, inputs):
            bright = np.rint(inputs["image"][:, 0, 0, 0] * 9).astype(int)
            return {"output": np.eye(10, dtype=np.float32)[bright] * 100}

    engine = with_handler(Brightest(), Path(__file__).parents[3] / "examples" / "digits_handler.py")
    dry_run(engine)
    text = b"P2\n8 8\n9\n" + b" ".join(b"%d" % (7 if pixel == 0 else 1) for pixel in range(64))
    raw = b"P5 8 8 9\n" + bytes([3] + [0] * 63)
    answers = engine({"picture": to_objects([text, raw], (2,))})
    assert answers["digit"].tolist() == [b"7", b"3"]
    assert answers["probability"] == pytest.approx([1, 1])
    for wrong, says in (
        (b"", "expected a picture in PGM format"),
        (b"P5 9 8 9\n" + bytes(72), "expected 8 by 8 pixels of one byte, got 9 by 8 up to 9"),
        (b"P2 8 8 9 1 2 3", "expected 64 pixels, got 3"),
    ):
        with pytest.raises(InputError, match=says):
            engine({"picture": to_objects([wrong], (1,))})
