"""``sft web`` in Chromium: what a person sees, what stands in the files afterwards, and what the servers were asked."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sft.data.conversation import Turn
from sft.data.formats import FORMATS
from tests.browser import CHROMIUM
from tests.web.browser import Seen, Site, chromium
from tests.web.stub import INDENTED, Stub

if CHROMIUM is None:
    pytest.skip("NO BROWSER: the page is not tested here; apt-get install chromium", allow_module_level=True)
pytest.importorskip("gradio", reason="NO GRADIO: the page is not tested here; pip install 'vicugna[web]'")
pytest.importorskip("playwright", reason="NO PLAYWRIGHT: the page is not tested here; pip install playwright")

NAMES = ("alpha", "<b>beta</b>")


@pytest.fixture(scope="module")
def serving() -> Iterator[Stub]:
    started = Stub(NAMES)
    yield started
    started.close()


@pytest.fixture(scope="module")
def locked() -> Iterator[Stub]:
    started = Stub(("gamma",), key="sesame-open")
    yield started
    started.close()


@pytest.fixture(scope="module")
def sites(serving: Stub, locked: Stub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site]]:
    """A page whose server answers, and one whose servers do not: the second has no key, the other is away. They start together."""
    gone = Stub(())
    gone.close()
    first = Site([serving.url], tmp_path_factory.mktemp("web"))
    second = Site([locked.url, gone.url], tmp_path_factory.mktemp("away"), "--lang", "en", key="wrong-key")
    yield first, second
    assert [first.close(), second.close()] == [130, 130]  # what Ctrl-C leaves of any verb


@pytest.fixture(scope="module")
def browser(sites: tuple[Site, Site]) -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def whole(browser: Any, sites: tuple[Site, Site]) -> Iterator[Seen]:
    page = Seen(browser, sites[0].url)
    yield page
    page.close()


@pytest.fixture
def stub(serving: Stub) -> Stub:
    serving.forget()
    return serving


@pytest.fixture
def folder(sites: tuple[Site, Site]) -> Path:
    for name in ("votes.jsonl", "saved.jsonl"):
        (sites[0].folder / name).unlink(missing_ok=True)
    return sites[0].folder


@pytest.fixture
def seen(whole: Seen, stub: Stub, folder: Path, sites: tuple[Site, Site]) -> Iterator[Seen]:
    """The page as it is when it was just opened."""
    whole.open()
    whole.ready("alpha")
    yield whole
    assert whole.errors == []
    assert [address for address in whole.requests if not address.startswith(whole.url)] == []  # the page needs no network
    assert "Traceback" not in sites[0].log


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def roles(asked: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in asked["messages"]]


def test_a_dialogue_is_talked_edited_undone_and_saved(seen: Seen, stub: Stub, folder: Path) -> None:
    seen.page.click("#chat-settings button")
    seen.page.wait_for_timeout(300)  # it unfolds
    seen.page.fill("#chat-system textarea", "Be brief.")
    seen.page.press("#chat-system textarea", "Tab")
    seen.send("One?")
    seen.shows("alpha says: One?")
    seen.idle()
    seen.send("Two?")
    seen.shows("alpha says: Two?")
    seen.idle()
    first = [("system", "Be brief."), ("user", "One?")]
    assert roles(stub.asked[0]) == first
    assert roles(stub.asked[1]) == [*first, ("assistant", "alpha says: One?"), ("user", "Two?")]

    seen.press("regenerate")
    stub.wait_for(3)
    seen.idle(after=300)
    assert [roles(one)[-1] for one in stub.asked[1:]] == [("user", "Two?")] * 2

    seen.edit(2, "Three?")  # the second question
    seen.shows("alpha says: Three?")
    seen.idle()
    assert seen.messages() == ["One?", "alpha says: One?", "Three?", "alpha says: Three?"]
    seen.edit(3, "  Said by hand.")
    seen.shows("Said by hand.")
    seen.edit(0, "Zero?")  # takes what came after it along
    seen.notice("1 later exchange(s)")
    seen.idle()
    assert seen.messages() == ["Zero?", "alpha says: Zero?"]
    seen.press("undo")
    seen.shows("Said by hand.")
    assert seen.typed() == ""

    seen.press("save")
    seen.notice("Saved 2 answer(s)")
    seen.press("save")
    seen.notice("already")
    (row,) = rows(folder / "saved.jsonl")
    (turns,) = FORMATS["sharegpt"](row, {}).conversations
    assert turns == (
        *(Turn("system", "Be brief."), Turn("user", "One?"), Turn("assistant", "alpha says: One?")),
        *(Turn("user", "Three?"), Turn("assistant", "  Said by hand.")),
    )
    assert row["model"] == "alpha"

    seen.type("half a thought")
    seen.press("new")
    seen.wait("() => document.querySelectorAll('#chat-box-0 .message').length === 0")
    assert seen.typed() == "half a thought"
    seen.press("undo")
    seen.shows("Said by hand.")


def test_stop_keeps_what_came_and_the_server_stops(seen: Seen, stub: Stub, folder: Path) -> None:
    seen.send("hold on")
    seen.shows("alpha sa")  # while the server still writes
    assert seen.enabled("stop")
    assert not seen.enabled("regenerate")
    seen.send("typed meanwhile")
    seen.notice("An answer is being written")
    seen.press("stop")
    seen.idle()
    assert stub.hung_up.wait(5)
    assert seen.messages() == ["hold on", "alpha say"]
    assert seen.typed() == "typed meanwhile"
    seen.press("save")
    seen.notice("answer 1 did not come to its own end")
    assert not (folder / "saved.jsonl").exists()


def test_a_page_that_is_closed_stops_the_server(browser: Any, seen: Seen, stub: Stub) -> None:
    other = Seen(browser, seen.url)
    other.ready("alpha")
    other.send("hold on")
    other.shows("alpha sa")
    other.close()
    assert stub.hung_up.wait(5)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("overflow it", "does not fit into the model's context; nothing was cut"),
        ("busy you", "is busy"),
        ("wrong", "failed. 500: alpha has a fault"),
        ("break off", "broke off within the answer"),
        ("long", "Cut at the longest answer"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_typed_is_lost(question: str, said: str, seen: Seen) -> None:
    seen.send(question)
    seen.notice(said)
    seen.idle()
    assert seen.messages()[0] == question
    if question.startswith(("overflow", "busy", "wrong")):
        seen.send("what I typed next")
        seen.notice("has no answer to go on from")
        assert seen.typed() == "what I typed next"
        seen.press("undo")
        seen.wait("() => document.querySelector('#chat-typed textarea').value.includes('\\n')")
        assert seen.typed() == f"{question}\nwhat I typed next"


def test_nothing_that_a_model_writes_is_run(seen: Seen) -> None:
    seen.send("evil please")
    seen.shows("after")
    seen.idle()
    seen.wait("() => !document.querySelector('#chat-box-0 .message img[src*=outside]')?.complete === false")
    assert seen.blocked == ["http://outside.invalid/pixel.png"]
    assert seen.page.locator("#chat-box-0 .message a").evaluate_all("links => links.map(link => link.protocol)") in ([], [":"])
    assert seen.page.evaluate("window.owned") is None
    assert seen.page.locator("#chat-box-0 .message iframe, #chat-box-0 .message script").count() == 0
    shown = seen.text()
    assert "<script>window.owned = 1</script>" in shown  # what the model wrote is read, not hidden
    assert "<iframe" in shown
    assert "if (a <b) { x<y>(1) }" in shown
    seen.page.click("#chat-settings button")
    seen.page.check("#chat-plain input")
    seen.shows("<img src=x onerror='window.owned = 2'>")
    assert seen.page.evaluate("window.owned") is None


def test_texts_keep_their_spaces(seen: Seen, folder: Path) -> None:
    seen.send("indented  please ")
    seen.shows("four spaces")
    seen.idle()
    seen.press("save")
    seen.notice("Saved 1")
    (row,) = rows(folder / "saved.jsonl")
    assert [turn["value"] for turn in row["conversations"]] == ["indented  please ", INDENTED]


def test_two_models_are_compared_blind_and_voted_on_once(seen: Seen, stub: Stub, folder: Path) -> None:
    seen.tab("Side by side")
    votes = ("model_a", "model_b", "tie", "tie (bothbad)")
    seen.send("hold both", "arena")
    seen.shows("▌", "arena-box-0")
    seen.shows("▌", "arena-box-1")
    assert {one["model"] for one in stub.asked} == set(NAMES)
    assert not any(seen.enabled(name.split()[0], "arena") for name in votes)  # neither is finished
    stub.released.set()
    seen.idle("arena")
    seen.send("And 你好吗，今天天气怎么样？", "arena")
    stub.wait_for(4)
    seen.idle("arena", after=300)
    assert seen.enabled("model_b", "arena")
    boxes = [seen.text(f"arena-box-{side}") for side in (0, 1)]
    assert ["Left model" in boxes[0], "Right model" in boxes[1]] == [True, True]
    labels = "() => [...document.querySelectorAll('#arena-box-0 label, #arena-box-1 label')].map(one => one.innerText.trim())"
    assert seen.page.evaluate(labels) == ["Left model", "Right model"]
    assert not (folder / "votes.jsonl").exists()

    seen.press("model_b", "arena")
    seen.notice("Your vote is recorded", "arena")
    (vote,) = rows(folder / "votes.jsonl")
    left, right = vote["model_a"], vote["model_b"]
    assert {left, right} == set(NAMES)
    assert seen.page.evaluate(labels) == [f"Left model: {left}", f"Right model: {right}"]
    assert vote["conversation_a"][1] == {"role": "assistant", "content": f"{left} says: hold both"}
    assert f"{left} says: hold both" in boxes[0]
    assert (vote["winner"], vote["turn"], vote["language"]) == ("model_b", 2, "Chinese")
    assert not any(seen.enabled(name.split()[0], "arena") for name in (*votes, "regenerate", "undo", "send"))

    seen.press("new_round", "arena")
    seen.wait("() => !document.querySelector('#arena-send').disabled")
    assert seen.page.evaluate(labels) == ["Left model", "Right model"]
    seen.send("wrong again", "arena")
    seen.notice("A server failed", "arena")
    seen.idle("arena")
    words = seen.page.input_value("#arena-notice textarea") + seen.text("arena-box-0") + seen.text("arena-box-1")
    assert not any(name in words for name in NAMES)  # a fault gives no model away
    assert not seen.enabled("tie", "arena")


def test_a_phone_shows_it_all_in_its_width(browser: Any, seen: Seen) -> None:
    phone = Seen(browser, f"{seen.url}zh/", width=390, height=844)
    phone.ready("alpha")
    assert phone.page.evaluate("document.documentElement.lang") == "zh-CN"
    phone.send("a" * 300 + " 很长的一行")
    phone.shows("alpha says: aaa")
    phone.idle()
    for tab, label in (("chat", "对话"), ("arena", "双盲对比")):
        phone.tab(label)
        phone.page.wait_for_selector(f"#{tab}-typed textarea", state="visible")
        assert phone.page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [390, 390]
        for button in phone.page.locator("button:visible").all():
            if button.get_attribute("id"):
                button.scroll_into_view_if_needed()
                place = button.bounding_box()
                assert place["x"] >= 0, button.get_attribute("id")
                assert place["x"] + place["width"] <= 390, button.get_attribute("id")
                assert place["height"] >= 30, button.get_attribute("id")
    assert "发送" in phone.text("arena-send")
    phone.close()
    assert phone.errors == []


def test_a_server_that_is_away_and_one_that_wants_a_key(browser: Any, sites: tuple[Site, Site], locked: Stub) -> None:
    site = sites[1]
    page = Seen(browser, site.url)
    page.notice("does not take the API key")
    page.notice("/v1 cannot be reached")
    assert "wrong-key" not in page.page.input_value("#chat-notice textarea")
    page.send("Hello?")
    page.notice("No model is chosen")
    assert page.typed() == "Hello?"
    locked.key = "wrong-key"
    page.press("refresh")
    page.ready("gamma")
    page.page.press("#chat-typed textarea", "Enter")
    page.shows("gamma says: Hello?")
    page.close()
    assert "wrong-key" not in site.log


def test_only_loopback_is_answered_and_nothing_comes_from_elsewhere(sites: tuple[Site, Site], folder: Path) -> None:
    (folder / "saved.jsonl").write_text("sesame-row", encoding="utf-8")
    address = sites[0].url.removeprefix("http://").rstrip("/")
    for host, path, status in (
        (address, "/en/", 200),
        ("evil.example", "/en/", 400),
        (address, f"/en/gradio_api/file={folder / 'saved.jsonl'}", 403),
    ):
        connection = http.client.HTTPConnection(address)
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        assert answer.status == status, path
        assert b"sesame-row" not in answer.read()
        policy = answer.getheader("Content-Security-Policy") or ""
        assert policy.startswith("default-src 'self';")
        connection.close()


@pytest.mark.parametrize(
    ("number", "accepted", "place"), [(0, "zh-CN,zh;q=0.9,en;q=0.8", "zh/"), (0, "fr, en", "en/"), (1, "zh", "en/")]
)
def test_the_browser_chooses_the_language_unless_lang_does(
    number: int, accepted: str, place: str, sites: tuple[Site, Site]
) -> None:
    connection = http.client.HTTPConnection(sites[number].url.removeprefix("http://").rstrip("/"))
    connection.request("GET", "/", headers={"Accept-Language": accepted})
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Location")) == (307, place)
    connection.close()
