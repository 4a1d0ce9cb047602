"""Templated text for the demonstration language model.

Two tasks share one model and are told apart by the prompt: *sentiment* answers one word for a
product review, *chat* answers a support-desk or GPU operations question. Every example is drawn
from the tables below by a seeded generator, so the same call always gives the same text, and
every text belongs to exactly one split, decided by a hash of its words. The module needs nothing
outside the standard library: the traffic generator uses it as well as the training script.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Split = Literal["train", "heldout"]
Task = Literal["sentiment", "chat"]

CORPUS_VERSION: Final = 1
END_TOKEN: Final = "<|end|>"  # noqa: S105 - a vocabulary entry, not a secret
PAD_TOKEN: Final = "<|pad|>"  # noqa: S105 - a vocabulary entry, not a secret
ANSWER_TOKEN: Final = "<|answer|>"  # noqa: S105 - a vocabulary entry, not a secret
SENTIMENT_TEMPLATE: Final = "<|sentiment|>{text}<|answer|>"
CHAT_TEMPLATE: Final = "<|chat|>{text}<|answer|>"
SPECIAL_TOKENS: Final = (PAD_TOKEN, END_TOKEN, "<|sentiment|>", "<|chat|>", ANSWER_TOKEN)

POSITIVE: Final = "positive"
NEGATIVE: Final = "negative"
NEUTRAL: Final = "neutral"

# One text in ten is held out, chosen by its hash. Texts of fewer words than this are always
# training texts: "hello" has no unseen variant that would make holding it out meaningful.
_HELDOUT_BYTE_LIMIT: Final = 26
_MIN_HELDOUT_WORDS: Final = 4


@dataclass(frozen=True, slots=True)
class Example:
    """One text of a task and the answer the model is trained to give for it."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """A fixed prompt whose exact greedy answer shows that a served model is intact."""

    task: Task
    text: str
    expected: str


@dataclass(frozen=True, slots=True)
class _Topic:
    """A GPU operations subject; the four phrases are combined into the four kinds of reply."""

    name: str
    synonyms: tuple[str, ...]
    meaning: str
    cause: str
    check: str
    fix: str


@dataclass(frozen=True, slots=True)
class _Intent:
    """A support-desk question in several wordings and its reply; both may name slots."""

    questions: tuple[str, ...]
    reply: str


def _words(text: str) -> tuple[str, ...]:
    """Split a comma-separated table line into its entries."""
    return tuple(" ".join(part.split()) for part in text.split(",") if part.strip())


# ------------------------------------------------------------------------- sentiment tables

_PRODUCTS: Final = _words("""
    laptop, phone, tablet, keyboard, mouse, monitor, printer, camera, speaker, router, charger,
    headset, microphone, webcam, smart watch, drone, projector, scanner, console, television,
    vacuum cleaner, coffee machine, kettle, toaster, blender, oven, fridge, dishwasher, washing
    machine, lamp, desk, chair, mattress, backpack, jacket, bicycle, scooter, tent, graphics card,
    power supply, docking station, memory card, hard drive, thermostat""")
_ASPECTS: Final = _words("""
    battery life, screen, customer service, packaging, delivery, app, software, design, build
    quality, sound, picture, manual, interface, support team, website, price, fabric, handle,
    display, hotel, room, food, film, book, restaurant, staff, course, update, service, game,
    checkout, warranty, story, music, location, product, thing, device, company, place, experience,
    waiter, shop, model, quality""")
_GOOD: Final = _words("""
    good, great, excellent, amazing, superb, fantastic, wonderful, brilliant, awesome, perfect,
    outstanding, impressive, reliable, lovely, beautiful, delightful, helpful, fast, comfortable,
    sturdy, elegant, terrific, flawless, incredible, solid, smooth, pleasant, charming, useful,
    exceptional, remarkable, marvellous, nice, fabulous, stunning, friendly, responsive, durable,
    intuitive, enjoyable, clever, gorgeous, handy, polished, satisfying, magnificent, efficient,
    splendid, first class, top notch""")
_BAD: Final = _words("""
    bad, terrible, awful, horrible, poor, disappointing, dreadful, useless, broken, cheap, slow,
    unreliable, annoying, frustrating, ugly, flimsy, noisy, defective, faulty, disgusting, weak,
    clumsy, boring, mediocre, uncomfortable, confusing, lousy, pathetic, unusable, miserable,
    rude, dull, buggy, fragile, worthless, shoddy, appalling, laggy, overpriced, unacceptable,
    unpleasant, inferior, sluggish, painful, unhelpful, messy, atrocious, abysmal, second rate,
    horrendous""")
_PLAIN: Final = _words("""
    average, ordinary, standard, okay, so-so, nothing special, as expected, neither good nor bad,
    fairly typical, fine I suppose""")
_DEGREES: Final = _words("""
    very, really, extremely, absolutely, truly, quite, so, incredibly, totally, pretty,
    remarkably, surprisingly, simply, just""")
_LINKS: Final = _words("is, was, seems, looks, feels, turned out to be, has been")
_NOT_LINKS: Final = _words("""
    is not, was not, isn't, wasn't, is never, is not very, is not that, isn't really,
    is far from, is anything but""")
_LIKES: Final = _words("""
    love, like, adore, enjoy, really like, really enjoy, am happy with, am very happy with,
    am really happy with, am delighted by, loved, liked, enjoyed""")
_DISLIKES: Final = _words("""
    hate, dislike, regret buying, cannot stand, am unhappy with, am tired of,
    am disappointed by, am very unhappy with, really hate, hated, disliked, regret""")
_DENIED_LIKES: Final = _words("like, love, enjoy, recommend, trust")
_DENIED_DISLIKES: Final = _words("regret buying, hate, dislike, regret, mind")
_WELL: Final = _words("""
    perfectly, flawlessly, beautifully, reliably, very well, great, without a hitch,
    like a charm""")
_BADLY: Final = _words("""
    badly, poorly, terribly, erratically, worse than before, only half of the time,
    like a cheap toy""")
_FAILS: Final = _words("""
    broke, failed, crashed, stopped working, fell apart, died, let me down,
    gave up""")
_NEVER_FAILS: Final = _words("""
    never fails, never breaks, never crashes, never lets me down, never disappoints,
    has not failed once""")
_GOOD_REMARKS: Final = _words("""
    worth every penny, highly recommended, I would buy it again, five stars, well done,
    it made my day, I am very happy, best purchase ever, it exceeded my expectations,
    it does everything I need, I am impressed, no complaints at all, money well spent,
    I could not be happier, I love it, it works as promised, the best I have owned,
    best ever, a pleasure to use, better than I hoped, it is the best""")
_BAD_REMARKS: Final = _words("""
    a waste of money, I want a refund, I would not buy it again, one star, stay away,
    it ruined my day, I am very unhappy, worst purchase ever, it did not meet my expectations,
    it could be better, it does nothing right, I am disappointed, nothing but trouble,
    money down the drain, worst ever, a pain to use, worse than I feared, it is the worst,
    I sent it back, I hate it, it does not work, the worst I have owned""")
_FACTS: Final = (
    "the {s} comes in {colour}",
    "the {s} weighs {n} grams",
    "the {s} has {n} buttons",
    "I bought the {s} on {day}",
    "the {s} arrived on {day}",
    "the {s} was made in {year}",
    "the manual of the {s} has {n} pages",
    "the box contains a {s} and a cable",
    "the {s} costs {n} euros",
    "the {s} is {n} centimetres wide",
    "we ordered {n} units of the {s}",
    "the {s} is {colour}",
    "my brother has the same {s}",
    "the {s} is available in {n} sizes",
    "the invoice for the {s} was sent on {day}",
    "the {s} stands in the office",
    "there is a {s} on the table",
    "the shop opens at {n} on {day}",
    "the {s} runs on {n} volts",
    "this review is about the {s}",
    "the parcel with the {s} arrived on {day}",
    "the {u} is at {n}",
    "the {u} has {n} pages",
    "the {u} is on the {s}",
    "we have a {u} and a {s}",
    "the {s} and the {u} are {colour}",
    "the {u} starts at {n} on {day}",
    "they talked about the {u} in {year}",
    "the {u} went to {s} number {n}",
)
_COLOURS: Final = _words("red, blue, black, white, green, grey, silver, yellow")
_DAYS: Final = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
_PLAIN_NOUNS: Final = _words("""
    meeting, book, cat, parcel, letter, train, house, door, street, river, child, dog, mat, garden,
    window, report, lesson, bus, team, man, woman, tree, picture, list, key, cup, bag,
    road""")
_SYLLABLES: Final = _words("ba, ko, ri, tu, len, mor, sa, vi, gra, xo, pel, dun, che, wi, sto, nak")
_OPENERS: Final = _words("""
    Honestly, In my opinion, After two weeks, Overall, To be fair, For me, So far,
    I think""")

# ------------------------------------------------------------------------------ chat tables

_TOPICS: Final = (
    _Topic(
        "thermal throttling",
        ("thermal slowdown", "heat throttling"),
        "the chip lowers its clocks to stay cool",
        "blocked air flow or a failed fan",
        "compare the clock with the temperature",
        "clean the fans and lower the power limit",
    ),
    _Topic(
        "high GPU temperature",
        ("overheating", "a hot GPU", "a very hot card"),
        "the chip runs close to its thermal limit",
        "dust, a warm room or a full load",
        "plot the temperature of the last hour",
        "improve the cooling and move work to another card",
    ),
    _Topic(
        "out of memory errors",
        ("OOM", "OOM errors", "CUDA out of memory"),
        "a request needs more memory than is free",
        "a large batch or a long context",
        "look at the peak memory of each request",
        "lower the batch size or shorten the context",
    ),
    _Topic(
        "a memory leak",
        ("leaking memory", "memory that keeps growing"),
        "memory grows and is never given back",
        "cached tensors that nobody releases",
        "fit a line through the memory use of one day",
        "restart the worker and update the runtime",
    ),
    _Topic(
        "ECC errors",
        ("memory bit errors", "double bit errors"),
        "the memory of the card returned a wrong bit",
        "an ageing memory chip",
        "read the volatile error counters",
        "drain the card, reset it and replace it if errors return",
    ),
    _Topic(
        "low GPU utilisation",
        ("an idle GPU", "low GPU usage", "low utilization"),
        "the card waits instead of computing",
        "slow input or batches that are too small",
        "compare GPU use with CPU use",
        "raise the batch size and feed data in parallel",
    ),
    _Topic(
        "high latency",
        ("slow responses", "slow inference", "a high p99"),
        "answers take longer than the target",
        "a full queue or a slow card",
        "split the time into queue, compute and network",
        "add a replica or shorten the queue",
    ),
    _Topic(
        "request timeouts",
        ("timeouts", "requests that time out"),
        "clients give up before the answer is ready",
        "long queues or a stuck worker",
        "count the timeouts of each worker",
        "restart the slow worker and limit the queue",
    ),
    _Topic(
        "a growing queue",
        ("queue growth", "a long queue", "backlog"),
        "more requests arrive than are answered",
        "a burst of traffic or a lost replica",
        "compare the arrival rate with the service rate",
        "add replicas or shed the lowest priority",
    ),
    _Topic(
        "a driver mismatch",
        ("wrong driver version", "driver conflict"),
        "the driver and the runtime do not fit together",
        "an update that was only half installed",
        "print the versions of driver and runtime",
        "install the matching driver and reboot the node",
    ),
    _Topic(
        "a failed model load",
        ("model load errors", "a model that will not load"),
        "the server could not open the model file",
        "a missing or damaged file",
        "compare the checksum of the file",
        "copy the model again and reload it",
    ),
    _Topic(
        "cold starts",
        ("slow start", "cold start latency"),
        "the first requests wait for the model to load",
        "replicas that are started on demand",
        "measure the time from start to first answer",
        "keep one warm replica and send warm-up requests",
    ),
    _Topic(
        "power capping",
        ("power throttling", "hitting the power limit"),
        "the card slows down at its power limit",
        "a low limit or a weak power supply",
        "compare the power draw with the limit",
        "raise the limit or spread the load",
    ),
    _Topic(
        "a fan failure",
        ("a broken fan", "fan errors"),
        "a fan does not reach its target speed",
        "worn bearings or a loose cable",
        "read the fan speed at full load",
        "drain the node and replace the fan",
    ),
    _Topic(
        "PCIe errors",
        ("PCIe replays", "bus errors"),
        "data is sent twice over the bus",
        "a loose card or a bad riser",
        "watch the replay counter",
        "reseat the card and update the firmware",
    ),
    _Topic(
        "NVLink errors",
        ("a failed NVLink", "link errors"),
        "a link between two cards lost data",
        "a dirty bridge or a failing link",
        "read the error counters of each link",
        "reset the link and replace the bridge",
    ),
    _Topic(
        "Xid errors",
        ("an Xid message", "Xid codes"),
        "the driver reported a fault of the card",
        "a hardware fault or a faulty program",
        "search the kernel log for the code",
        "restart the job and reset the card",
    ),
    _Topic(
        "a stuck worker",
        ("a hung process", "a frozen worker"),
        "the process lives but answers nothing",
        "a deadlock or a lost device",
        "send a canary request with a short deadline",
        "kill the worker and start a fresh one",
    ),
    _Topic(
        "a CPU bottleneck",
        ("high CPU load", "CPU saturation"),
        "the processor cannot keep the card busy",
        "too few threads for tokenising",
        "look at the load of every core",
        "add cores or move work to the card",
    ),
    _Topic(
        "small batches",
        ("poor batching", "a low batch size"),
        "the card computes few requests at a time",
        "a short batching window",
        "plot the batch size of each step",
        "let the batcher wait a little longer",
    ),
    _Topic(
        "KV cache pressure",
        ("a full KV cache", "cache evictions"),
        "the key value cache has no free slots",
        "many long conversations at once",
        "watch the share of used slots",
        "limit the context or add memory",
    ),
    _Topic(
        "memory fragmentation",
        ("fragmented memory", "an allocator problem"),
        "free memory is split into small pieces",
        "requests of very different sizes",
        "compare reserved memory with used memory",
        "use fixed sizes and restart at night",
    ),
    _Topic(
        "a full disk",
        ("no disk space", "low disk space"),
        "new files can no longer be written",
        "old logs and old model versions",
        "list the largest folders",
        "delete old versions and rotate the logs",
    ),
    _Topic(
        "network congestion",
        ("a slow network", "packet loss"),
        "packets wait or get lost on the way",
        "a busy link or a bad cable",
        "measure the round trip time",
        "move the backup traffic and check the switch",
    ),
    _Topic(
        "low throughput",
        ("few tokens per second", "slow token generation"),
        "the service answers fewer tokens than planned",
        "small batches or low clocks",
        "count the tokens per second of each card",
        "raise the batch size and check the clocks",
    ),
    _Topic(
        "accuracy drift",
        ("quality drift", "worse answers over time"),
        "answers get worse while the service looks healthy",
        "inputs that differ from the training data",
        "score the golden prompts every hour",
        "roll back and retrain with fresh data",
    ),
    _Topic(
        "NaN outputs",
        ("invalid outputs", "not a number results"),
        "the model returns values that are not numbers",
        "an overflow or damaged weights",
        "run the golden prompts on every card",
        "reload the weights and use a wider type",
    ),
    _Topic(
        "slow tokenisation",
        ("a slow tokenizer", "tokenizer delays"),
        "text is cut into tokens too slowly",
        "very long inputs on one thread",
        "time the tokenizer alone",
        "use more threads and limit the input",
    ),
    _Topic(
        "a crash loop",
        ("repeated crashes", "constant restarts"),
        "the service stops again right after each start",
        "a bad setting or a damaged model",
        "read the last lines of the log",
        "go back to the last good version",
    ),
    _Topic(
        "failed health checks",
        ("a failing probe", "red health checks"),
        "the probe gets no good answer in time",
        "an overloaded or frozen service",
        "call the probe by hand",
        "restart the service and raise the probe timeout",
    ),
    _Topic(
        "a failed rollout",
        ("a bad deployment", "a broken release"),
        "the new version does worse than the old one",
        "a change that was not tested under load",
        "compare the error rates of both versions",
        "stop the rollout and roll back",
    ),
    _Topic(
        "slow autoscaling",
        ("scaling delays", "late scaling"),
        "new replicas arrive after the burst",
        "long start times and late signals",
        "compare the queue with the replica count",
        "scale on queue length and keep a reserve",
    ),
    _Topic(
        "load imbalance",
        ("uneven load", "a hot replica"),
        "one replica gets more work than the others",
        "sticky sessions or wrong weights",
        "compare the request rates of all replicas",
        "send each request to the shortest queue",
    ),
    _Topic(
        "rate limiting",
        ("error 429", "too many requests"),
        "the gateway refuses requests above a quota",
        "one client that sends too fast",
        "count the requests of each client",
        "slow the client down or raise its quota",
    ),
    _Topic(
        "high GPU cost",
        ("high energy cost", "expensive inference"),
        "each answer costs more than planned",
        "idle cards that stay switched on",
        "divide the cost by the tokens served",
        "pack the models on fewer cards",
    ),
    _Topic(
        "alert noise",
        ("too many alerts", "false alarms"),
        "people are called when nothing is wrong",
        "limits that ignore the daily rhythm",
        "count the alerts that needed no action",
        "use learned limits and group the alerts",
    ),
    _Topic(
        "missing metrics",
        ("gaps in the metrics", "no metrics"),
        "the collector delivered no samples",
        "a stopped exporter or a lost network",
        "open the exporter page by hand",
        "restart the exporter and test the alert",
    ),
    _Topic(
        "expired certificates",
        ("certificate errors", "TLS errors"),
        "clients no longer trust the connection",
        "a renewal job that failed",
        "print the end date of the certificate",
        "renew it and watch its remaining days",
    ),
    _Topic(
        "a wrong model version",
        ("a stale model", "an old model version"),
        "the service answers with another model than planned",
        "a replica that missed the reload",
        "ask every replica for its version",
        "reload the replica and pin the version",
    ),
    _Topic(
        "quantisation errors",
        ("quantization loss", "low precision errors"),
        "rounding the weights changed the answers",
        "a few layers with a wide range",
        "compare the answers with the full model",
        "keep those layers in a wider type",
    ),
    _Topic(
        "a canary failure",
        ("failed canaries", "a wrong golden answer"),
        "a golden prompt got a wrong answer",
        "a damaged model or a faulty card",
        "send the same prompt to another replica",
        "take the replica out and reload the model",
    ),
    _Topic(
        "a lost GPU",
        ("a missing GPU", "a card off the bus"),
        "the driver can no longer see the card",
        "a power dip or a hardware fault",
        "list the devices and read the kernel log",
        "drain the node, reboot it and call the vendor",
    ),
)
_TOPIC_QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "what": (
        "what is {t}?",
        "what does {t} mean?",
        "explain {t}",
        "can you explain {t}?",
        "what do you mean by {t}?",
        "define {t}",
        "please explain {t} to me",
        "tell me about {t}",
        "what's {t}?",
        "meaning of {t}",
    ),
    "why": (
        "what causes {t}{at}?",
        "why do I see {t}{at}?",
        "why is there {t}{at}?",
        "where does {t} come from{at}?",
        "what is the reason for {t}{at}?",
        "we have {t}{at}, why?",
        "what can lead to {t}{at}?",
        "why do we get {t}{at}?",
        "why {t}{at}?",
        "cause of {t}{at}",
    ),
    "fix": (
        "how do I fix {t}{at}?",
        "how can I solve {t}{at}?",
        "how do I get rid of {t}{at}?",
        "help, we have {t}{at}",
        "what should I do about {t}{at}?",
        "{t}{at}, what now?",
        "how do we stop {t}{at}?",
        "I have a problem with {t}{at}",
        "how to fix {t}{at}",
        "there is {t}{at}",
        "{t}{at}",
    ),
    "check": (
        "how do I check for {t}{at}?",
        "how can I detect {t}{at}?",
        "how do I find {t}{at}?",
        "is there a way to see {t}{at}?",
        "how do I know if there is {t}{at}?",
        "how can we monitor {t}{at}?",
        "how do I diagnose {t}{at}?",
        "do we have {t}{at}?",
        "how to find {t}{at}",
        "how to detect {t}{at}",
    ),
}
_TOPIC_REPLIES: Final[dict[str, str]] = {
    "what": "By {t} we mean that {meaning}. The usual cause is {cause}. To see it, {check}.",
    "why": "{At}the usual cause of {t} is {cause}. To confirm it, {check}. Then {fix}.",
    "fix": "{At}to fix {t}, {fix}. The usual cause is {cause}. Watch it for one hour.",
    "check": "{At}to check for {t}, {check}. If you find it, {fix}.",
}
_SERVICES: Final = _words("chatbot, search, ranking, translation, vision, speech, billing, chat")
_MAX_GPU_INDEX: Final = 15
_MAX_NODE_INDEX: Final = 40

_SUPPORT: Final = (
    _Intent(
        (
            "how do I reset the password of my {p}?",
            "I forgot the password of my {p}",
            "my {p} does not accept my password",
            "{p} password reset",
        ),
        "To reset the password of your {p}, open the account page, choose reset password "
        "and follow the link that we send by mail.",
    ),
    _Intent(
        (
            "where is my order {o}?",
            "what is the status of order {o}?",
            "when will order {o} arrive?",
            "can you track order {o} for me?",
        ),
        "Order {o} is on its way. You can follow order {o} on the tracking page; most "
        "parcels arrive within three days.",
    ),
    _Intent(
        (
            "please cancel order {o}",
            "I want to cancel order {o}",
            "how do I cancel order {o}?",
            "can I still cancel order {o}?",
        ),
        "You can cancel order {o} until it leaves our store. Open the order page, choose "
        "order {o} and press cancel.",
    ),
    _Intent(
        (
            "I want a refund for order {o}",
            "how do I get my money back for order {o}?",
            "refund order {o} please",
            "when do I get the refund of order {o}?",
        ),
        "We are sorry about order {o}. Ask for a refund on the order page; the money for "
        "order {o} is back within five days.",
    ),
    _Intent(
        (
            "I need an invoice for order {o}",
            "where is the invoice of order {o}?",
            "send me the bill for order {o}",
            "can I download the invoice of order {o}?",
        ),
        "You find the invoice of order {o} on the account page under documents. We can also "
        "send it by mail.",
    ),
    _Intent(
        (
            "how do I change the address of order {o}?",
            "wrong address on order {o}",
            "please send order {o} to another address",
            "I have moved, what about order {o}?",
        ),
        "You can change the address of order {o} on the order page as long as the parcel "
        "has not left our store.",
    ),
    _Intent(
        (
            "an item is missing in order {o}",
            "order {o} is incomplete",
            "something is missing from order {o}",
            "I did not get all parts of order {o}",
        ),
        "We are sorry that order {o} is incomplete. Tell us the missing item and we send it "
        "the same day.",
    ),
    _Intent(
        (
            "order {o} arrived damaged",
            "my parcel {o} is damaged",
            "the box of order {o} was broken",
            "order {o} came broken, what now?",
        ),
        "We are sorry that order {o} arrived damaged. Send us a photo and we replace it "
        "free of charge.",
    ),
    _Intent(
        (
            "my {p} does not start",
            "my {p} does not turn on",
            "why does my {p} not switch on?",
            "the {p} is dead, what can I do?",
        ),
        "If your {p} does not start, unplug it for one minute, try another socket and hold "
        "the power button for ten seconds.",
    ),
    _Intent(
        (
            "my {p} is too slow",
            "why is my {p} so slow?",
            "how do I make my {p} faster?",
            "the {p} got very slow",
        ),
        "To make your {p} faster, install the latest update, close what you do not need and "
        "restart it once a week.",
    ),
    _Intent(
        (
            "how do I update my {p}?",
            "how do I install the update on my {p}?",
            "is there new firmware for my {p}?",
            "update the software of my {p}",
        ),
        "To update your {p}, connect it to power, open the settings, choose update and wait "
        "until it restarts.",
    ),
    _Intent(
        (
            "how do I connect my {p} to the network?",
            "my {p} has no Wi-Fi",
            "my {p} does not find the network",
            "how do I set up Wi-Fi on my {p}?",
        ),
        "To connect your {p}, open the network settings, choose your Wi-Fi and type the key "
        "that is printed on the router.",
    ),
    _Intent(
        (
            "how do I pair my {p}?",
            "my {p} does not connect over Bluetooth",
            "Bluetooth on my {p} does not work",
            "how do I use Bluetooth with my {p}?",
        ),
        "To pair your {p}, switch Bluetooth on, hold the pairing key for five seconds and "
        "choose the {p} in the list.",
    ),
    _Intent(
        (
            "the battery of my {p} is empty too soon",
            "how do I save battery on my {p}?",
            "my {p} loses battery overnight",
            "the battery of the {p} does not last",
        ),
        "To save the battery of your {p}, lower the brightness, close unused programs and "
        "do not leave it in the heat.",
    ),
    _Intent(
        (
            "how do I reset my {p}?",
            "factory reset of my {p}",
            "how do I restore the factory settings of my {p}?",
            "how do I delete everything on my {p}?",
        ),
        "To reset your {p}, save your data, open the settings, choose factory reset and "
        "confirm twice.",
    ),
    _Intent(
        (
            "my {p} makes a strange noise",
            "why is my {p} so loud?",
            "my {p} is very loud",
            "there is a noise coming from my {p}",
        ),
        "If your {p} is loud, place it on a flat surface, clean it and check that nothing "
        "is loose. Send it in if the noise stays.",
    ),
    _Intent(
        (
            "is my {p} still under warranty?",
            "how long is the warranty of the {p}?",
            "does the warranty cover my {p}?",
            "I have a warranty question about my {p}",
        ),
        "The warranty of your {p} lasts two years from the day of purchase and covers all "
        "faults in material and work.",
    ),
    _Intent(
        (
            "how do I return my {p}?",
            "I want to send my {p} back",
            "can I return the {p} that I bought?",
            "return label for a {p} please",
        ),
        "You can return your {p} within thirty days. Print the label from the order page and "
        "bring the parcel to any shop.",
    ),
    _Intent(
        (
            "how do I clean my {p}?",
            "what is the best way to clean a {p}?",
            "can I wash my {p}?",
            "my {p} is dirty",
        ),
        "To clean your {p}, switch it off, use a soft dry cloth and never let water get inside.",
    ),
    _Intent(
        (
            "can you repair my {p}?",
            "where can I get my {p} repaired?",
            "how much is the repair of a {p}?",
            "my {p} needs a repair",
        ),
        "We repair your {p} in about one week. Book a repair on the service page and we "
        "send you the price first.",
    ),
    _Intent(
        (
            "where do I find the manual of my {p}?",
            "I lost the manual of my {p}",
            "is there a manual for the {p}?",
            "send me the manual of the {p}",
        ),
        "The manual of your {p} is on the support page. Type {p} in the search field and "
        "download it.",
    ),
    _Intent(
        (
            "is the {p} in stock?",
            "when can I buy the {p} again?",
            "do you sell a {p}?",
            "is the {p} available?",
        ),
        "The {p} is in stock and leaves our store on the same day. You can order the {p} "
        "on our page.",
    ),
    _Intent(
        (
            "how do I delete my account?",
            "please close my account",
            "I want to delete my account now",
            "remove my account and data please",
        ),
        "You can delete your account on the account page under privacy. All your data is "
        "removed within thirty days.",
    ),
    _Intent(
        (
            "how do I change my mail address?",
            "I have a new mail address",
            "update the mail address of my account",
            "my mail address has changed",
        ),
        "To change your mail address, open the account page, type the new address and "
        "confirm the mail that we send.",
    ),
    _Intent(
        (
            "my payment failed",
            "why was my card refused?",
            "I cannot pay with my card",
            "the payment does not go through",
        ),
        "If a payment fails, check the number of the card, ask your bank or choose another "
        "way to pay. Nothing was charged.",
    ),
    _Intent(
        (
            "I want to talk to a person",
            "can I speak to a human?",
            "how do I contact support?",
            "what is the phone number of the support desk?",
        ),
        "You can reach our support desk by phone or mail every day from eight to eight. A "
        "person will help you there.",
    ),
    _Intent(
        (
            "when are you open?",
            "what are your opening hours?",
            "are you open on {d}?",
            "until when is the desk open?",
        ),
        "Our support desk is open every day from eight to eight, and the shop from nine to "
        "six except on Sunday.",
    ),
    _Intent(
        (
            "do you have a discount?",
            "is there a discount code?",
            "can I get a lower price?",
            "do you offer a student discount?",
        ),
        "Students and schools get ten percent off. Sign up for our letter to hear about "
        "every other discount.",
    ),
    _Intent(
        (
            "how long does delivery take?",
            "how fast do you deliver?",
            "what does delivery cost?",
            "do you deliver on {d}?",
        ),
        "Delivery takes two to three days and is free above fifty euros. We do not deliver "
        "on Sunday.",
    ),
    _Intent(
        (
            "how do I cancel my subscription?",
            "please end my subscription",
            "I want to stop my subscription",
            "how can I leave the plan?",
        ),
        "You can end your subscription at any time on the account page. It stays active "
        "until the end of the month.",
    ),
)
# Copying a number digit by digit is the hardest thing to learn here, so it is shown more often.
_SUPPORT_DRAWS: Final = (
    *_SUPPORT,
    *(intent for intent in _SUPPORT if "{o}" in intent.reply),
    *(intent for intent in _SUPPORT if "{o}" in intent.reply),
)
_SMALL_TALK: Final = (
    _Intent(
        ("hello", "hi", "hey", "hi there", "hello there", "good morning", "good evening"),
        "Hello! I can help with GPU operations, orders, accounts and devices. What would "
        "you like to know?",
    ),
    _Intent(
        ("thanks", "thank you", "thank you very much", "great, thanks", "that helped"),
        "You are welcome! Ask me again whenever you have a question about a GPU, an order "
        "or a device.",
    ),
    _Intent(
        ("who are you?", "what are you?", "are you a robot?", "what is your name?"),
        "I am the demonstration model of this platform. I am small, I run next to the "
        "services and I answer simple questions.",
    ),
    _Intent(
        ("what can you do?", "how can you help me?", "what can I ask you?", "help"),
        "I can explain GPU problems, tell you how to find and fix them, and answer "
        "questions about orders, accounts and devices.",
    ),
    _Intent(
        ("bye", "goodbye", "see you", "see you later", "good night"),
        "Goodbye! Have a good day, and may all your cards stay cool and your queues stay short.",
    ),
    _Intent(
        ("how are you?", "how are you today?", "are you okay?", "are you healthy?"),
        "I am well, thank you. My last golden prompts were answered right and my queue is "
        "short. How can I help?",
    ),
)
_FALLBACK_REPLY: Final = (
    "I am a small demonstration model and do not know the answer to that. Please ask me about "
    "GPU operations, orders, accounts or devices."
)
_FOREIGN_QUESTIONS: Final = (
    "what is the capital of {x}?",
    "who is the president of {x}?",
    "how do I cook {x}?",
    "tell me a joke about {x}",
    "write a poem about {x}",
    "how old is {x}?",
    "what is the weather in {x}?",
    "who invented {x}?",
    "translate {x} into {y}",
    "what do you think about {x}?",
    "sing a song about {x}",
    "how far is {x} from {y}?",
    "is {x} better than {y}?",
    "who won the match of {x} against {y}?",
    "do you like {x}?",
    "what is {n} times {n}?",
    "what is {n} plus {n}?",
    "{x} {y}",
    "{x}",
    "{x} and {y}?",
    "why is {x} {y}?",
    "when was {x} born?",
    "can you recommend {x}?",
    "where is {x}?",
    "what is {x}?",
    "how do I fix {x}?",
    "what causes {x}?",
    "explain {x} and {y}",
    "what's {x}?",
    "what does {x} mean?",
    "what is a {w}?",
    "what is the meaning of {x}?",
    "do you know any good {w}?",
    "do you know {x}?",
    "can you tell me about {x}?",
    "I want to learn about {x}",
    "which {w} should I buy?",
    "my {w} likes {x}",
    "where can I find a {w} in {x}?",
    "how many {x} are there?",
    "{w} or {x}?",
    "the {w} is about {x}",
)
_FOREIGN_WORDS: Final = _words("""
    France, Japan, Peru, Norway, Egypt, Canada, Berlin, Paris, Rome, London, pasta, rice, soup,
    pizza, bread, cats, dogs, horses, birds, the moon, the sun, the sea, love, history, poetry,
    football, tennis, chess, music, Mozart, Einstein, Shakespeare, Napoleon, philosophy, tax law,
    bitcoin, gardening, roses, mountains, dinosaurs, the universe, politics, religion, dreams,
    winter, summer, trains, ships, gold, wine, tea, yoga, medicine, a headache, algebra, Latin,
    Spanish, Chinese, the alphabet, time travel, happiness, life, a transformer, restaurants,
    good books, the stock market, a river, my cat, my mother, holidays, elephants, physics""")
_CHAT_OPENERS: Final = ("Hi, ", "Hello, ", "Hey, ", "Please help: ", "Quick question: ", "Sorry, ")
_CHAT_CLOSERS: Final = (" Thanks.", " Thank you!", " Please advise.", " Thanks in advance")

# ------------------------------------------------------------------------------------ splits


def split_of(text: str) -> Split:
    """Tell the split a text belongs to, from a hash of its words.

    Letter case and punctuation do not count, so a held-out text never appears in training under
    another spelling.
    """
    words = re.findall(r"\w+", text.lower())
    if len(words) < _MIN_HELDOUT_WORDS:
        return "train"
    digest = hashlib.sha256(" ".join(words).encode()).digest()
    return "heldout" if digest[0] < _HELDOUT_BYTE_LIMIT else "train"


def _draw(
    make: Callable[[random.Random], Example], n: int, seed: int, split: Split, name: str
) -> list[Example]:
    """Draw ``n`` examples of one split by rejection; repeated texts are possible."""
    if n < 0:
        raise ValueError(f"the number of examples must not be negative, got {n}")
    if split not in ("train", "heldout"):
        raise ValueError(f"unknown split {split!r}, expected 'train' or 'heldout'")
    rng = random.Random(f"{name}/{CORPUS_VERSION}/{seed}/{split}")  # noqa: S311 - text, no secret
    examples: list[Example] = []
    while len(examples) < n:
        example = make(rng)
        if split_of(example.text) == split:
            examples.append(example)
    return examples


# --------------------------------------------------------------------------------- sentiment


def sentiment_prompt(text: str) -> str:
    """Wrap a text in the prompt that asks for its sentiment."""
    return SENTIMENT_TEMPLATE.format(text=text)


def sentiment_examples(n: int, seed: int, split: Split) -> list[Example]:
    """Draw ``n`` reviews with their label; the same arguments always give the same list.

    Raises ValueError for a negative ``n`` or an unknown split.
    """
    return _draw(_sentiment_example, n, seed, split, "sentiment")


def _sentiment_example(rng: random.Random) -> Example:
    """Draw one review: a single clause, two clauses that agree, or a contrast."""
    shape = rng.random()
    label = rng.choice((POSITIVE, NEGATIVE))
    if shape < 0.30:
        text = _polar(rng, label)
    elif shape < 0.50:
        text = _contrast(rng, label)
    elif shape < 0.66:
        text = _agreement(rng, label)
    else:
        text, label = _neutral(rng), NEUTRAL
    if rng.random() < 0.15:
        text = f"{rng.choice(_OPENERS)}{rng.choice((', ', ' '))}{text}"
    return Example(_dress(rng, text, "." if label == NEUTRAL else ".!"), label)


def _dress(rng: random.Random, text: str, endings: str) -> str:
    """Vary letter case and the end of a sentence the way people type."""
    case = rng.random()
    if case < 0.7:
        text = text[0].upper() + text[1:]
    elif case < 0.9:
        text = text.lower()
    if text[-1] not in ".!?" and rng.random() < 0.8:
        text += rng.choice(endings)
    return text


def _opposite(label: str) -> str:
    """Turn positive into negative and back."""
    return NEGATIVE if label == POSITIVE else POSITIVE


def _subject(rng: random.Random) -> str:
    """Draw what a clause is about, mostly with an article."""
    kind = rng.random()
    if kind < 0.10:
        return rng.choice(("it", "this", "everything", "that"))
    if kind < 0.20:
        # Unknown nouns teach that the verdict decides and not the thing it is about.
        return f"{rng.choice(('the', 'this', 'my'))} {_unknown_word(rng)}"
    article = rng.choice(("the", "the", "the", "this", "my", "our", "their"))
    return f"{article} {rng.choice(rng.choice((_PRODUCTS, _ASPECTS)))}"


def _unknown_word(rng: random.Random) -> str:
    """Draw a noun without a meaning for either task, half of the time a made-up one."""
    if rng.random() < 0.5:
        return rng.choice(_PLAIN_NOUNS)
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))


def _adjective(rng: random.Random, good: bool) -> str:
    """Draw a word of praise or blame, sometimes with a degree."""
    word = rng.choice(_GOOD if good else _BAD)
    return f"{rng.choice(_DEGREES)} {word}" if rng.random() < 0.35 else word


def _described(rng: random.Random, good: bool) -> str:
    """Say what something is, or what it is not."""
    if rng.random() < 0.6:
        return f"{_subject(rng)} {rng.choice(_LINKS)} {_adjective(rng, good)}"
    return f"{_subject(rng)} {rng.choice(_NOT_LINKS)} {rng.choice(_BAD if good else _GOOD)}"


def _liked(rng: random.Random, good: bool) -> str:
    """Say that somebody likes or recommends something, or does not."""
    kind = rng.randrange(4)
    if kind == 0:
        denial = rng.choice(("do not", "don't", "did not", "didn't", "never"))
        verb = rng.choice(_DENIED_DISLIKES if good else _DENIED_LIKES)
        return f"I {denial} {verb} {_subject(rng)}"
    if kind == 1:
        verb = rng.choice(("would", "can", "will") if good else ("would not", "cannot", "won't"))
        return f"I {verb} recommend {_subject(rng)}"
    return f"I {rng.choice(_LIKES if good else _DISLIKES)} {_subject(rng)}"


def _performed(rng: random.Random, good: bool) -> str:
    """Say how something works, or whether it fails."""
    if rng.random() < 0.5:
        return f"{_subject(rng)} {rng.choice(_NEVER_FAILS if good else _FAILS)}"
    verb = rng.choice(("works", "performs", "runs"))
    return f"{_subject(rng)} {verb} {rng.choice(_WELL if good else _BADLY)}"


def _exclaimed(rng: random.Random, good: bool) -> str:
    """Name a thing with its quality, as in "what a lovely lamp"."""
    degree = rng.choice(("very ", "really ", "", "", ""))
    noun = rng.choice(rng.choice((_PRODUCTS, _ASPECTS)))
    phrase = f"{degree}{rng.choice(_GOOD if good else _BAD)} {noun}"
    article = "an" if phrase[0] in "aeiou" and not phrase.startswith("use") else "a"
    return f"{rng.choice(('what ', 'such ', 'this is ', 'it is ', ''))}{article} {phrase}"


def _remarked(rng: random.Random, good: bool) -> str:
    """Give a stock remark or a verdict without a verb."""
    kind = rng.randrange(6)
    if kind == 0:
        return f"not {rng.choice(_BAD if good else _GOOD)}{rng.choice(('', ' at all'))}"
    if kind == 1:
        return _adjective(rng, good)
    if kind == 2:
        noun = rng.choice(rng.choice((_PRODUCTS, _ASPECTS)))
        return f"{rng.choice(_GOOD if good else _BAD)} {noun}"
    return rng.choice(_GOOD_REMARKS if good else _BAD_REMARKS)


# Descriptions are what reviews mostly consist of, hence their weight.
_CLAUSES: Final = (
    _described,
    _described,
    _described,
    _described,
    _liked,
    _liked,
    _performed,
    _performed,
    _exclaimed,
    _remarked,
    _remarked,
)


def _polar(rng: random.Random, label: str) -> str:
    """Draw one clause that carries the given polarity."""
    return rng.choice(_CLAUSES)(rng, label == POSITIVE)


def _contrast(rng: random.Random, label: str) -> str:
    """Join two clauses that disagree; the main clause, always the last one, decides."""
    first = _polar(rng, _opposite(label)) if rng.random() < 0.8 else _neutral_clause(rng)
    last = _polar(rng, label)
    kind = rng.randrange(5)
    if kind <= 1:
        return f"{first}, but {last}"
    if kind == 2:
        return f"{first}. However, {last}"
    if kind == 3:
        return f"{rng.choice(('although', 'even though'))} {first}, {last}"
    return f"{first}, yet {last}"


def _agreement(rng: random.Random, label: str) -> str:
    """Join clauses that point the same way, or plain facts and a verdict, in any order."""
    clauses = [_polar(rng, label)]
    clauses += [
        _polar(rng, label) if rng.random() < 0.5 else _neutral_clause(rng)
        for _ in range(rng.choice((1, 1, 1, 2, 3)))
    ]
    rng.shuffle(clauses)
    return rng.choice((" and ", ". ", ", ")).join(clauses)


def _neutral_clause(rng: random.Random) -> str:
    """Draw a factual clause or a lukewarm one."""
    if rng.random() < 0.25:
        return f"{_subject(rng)} {rng.choice(_LINKS)} {rng.choice(_PLAIN)}"
    return rng.choice(_FACTS).format(
        s=rng.choice(_PRODUCTS),
        colour=rng.choice(_COLOURS),
        n=rng.randint(2, 400),
        day=rng.choice(_DAYS),
        u=_unknown_word(rng),
        year=rng.randint(1990, 2026),
    )


def _neutral(rng: random.Random) -> str:
    """Draw a neutral text: one fact, two facts, or a plain question."""
    kind = rng.random()
    if kind < 0.08:
        topic = rng.choice(_TOPICS)
        return rng.choice(_TOPIC_QUESTIONS["what"]).format(t=rng.choice(topic.synonyms))
    if kind < 0.35:
        joint = rng.choice((" and ", ". ", ", but "))
        return f"{_neutral_clause(rng)}{joint}{_neutral_clause(rng)}"
    return _neutral_clause(rng)


# -------------------------------------------------------------------------------------- chat


def chat_prompt(text: str) -> str:
    """Wrap a user's text in the prompt that asks for a reply."""
    return CHAT_TEMPLATE.format(text=text)


def chat_examples(n: int, seed: int, split: Split) -> list[Example]:
    """Draw ``n`` questions with their reply; the same arguments always give the same list.

    Raises ValueError for a negative ``n`` or an unknown split.
    """
    return _draw(_chat_example, n, seed, split, "chat")


def intent_count() -> int:
    """Count the distinct intents that chat answers, the fallback not included."""
    return len(_TOPICS) * len(_TOPIC_REPLIES) + len(_SUPPORT) + len(_SMALL_TALK)


def _chat_example(rng: random.Random) -> Example:
    """Draw one question in one wording, dressed the way people type."""
    question, reply = _chat_question(rng)
    if rng.random() < 0.25:
        question = rng.choice(_CHAT_OPENERS) + question
    text = _dress(rng, question, ".!" if rng.random() < 0.5 else "?")
    if rng.random() < 0.15:
        text += rng.choice(_CHAT_CLOSERS)
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return Example(text, reply)


def _chat_question(rng: random.Random) -> tuple[str, str]:
    """Draw a bare question and its reply."""
    kind = rng.random()
    if kind < 0.66:
        topic = rng.choice(_TOPICS)
        aspect = rng.choice(tuple(_TOPIC_REPLIES))
        place = "" if aspect == "what" else _place(rng)
        name = topic.name if rng.random() < 0.4 else rng.choice(topic.synonyms)
        question = rng.choice(_TOPIC_QUESTIONS[aspect])
        if aspect == "fix" and place and rng.random() < 0.2:
            question = f"{place.partition(' ')[2]} has {{t}}"
        return question.format(t=name, at=f" {place}" if place else ""), _topic_reply(
            topic, aspect, place
        )
    if kind < 0.85:
        intent = rng.choice(_SUPPORT_DRAWS)
        slots = {
            "p": rng.choice(_PRODUCTS),
            "o": f"{rng.randint(1000, 9999)}",
            "d": rng.choice(_DAYS),
        }
        return rng.choice(intent.questions).format(**slots), intent.reply.format(**slots)
    if kind < 0.89:
        intent = rng.choice(_SMALL_TALK)
        return rng.choice(intent.questions), intent.reply
    return _foreign_question(rng), _FALLBACK_REPLY


def _place(rng: random.Random) -> str:
    """Draw where a problem was seen; half of the questions name no place."""
    kind = rng.randrange(6)
    if kind == 0:
        return f"on node {rng.randint(1, _MAX_NODE_INDEX)}"
    if kind == 1:
        return f"in the {rng.choice(_SERVICES)} service"
    if kind == 2:
        return f"on GPU {rng.randint(0, _MAX_GPU_INDEX)}"
    return ""


def _topic_reply(topic: _Topic, aspect: str, place: str) -> str:
    """Build the reply about one aspect of a topic, naming the place of the question."""
    at = f"{place[0].upper()}{place[1:]}, " if place else ""
    reply = _TOPIC_REPLIES[aspect].format(
        At=at,
        t=topic.name,
        meaning=topic.meaning,
        cause=topic.cause,
        check=topic.check,
        fix=topic.fix,
    )
    return reply[0].upper() + reply[1:]


def _foreign_question(rng: random.Random) -> str:
    """Draw a question outside the model's subjects, some of it made of unknown words."""
    kind = rng.random()
    if kind < 0.12:
        return f"I {rng.choice(rng.choice((_LIKES, _DISLIKES)))} {_subject(rng)}"
    if kind < 0.20:
        # Any UTF-8 text must be answered, so letters beyond ASCII are shown in training too.
        last = rng.choice((0x17F, 0x4FF, 0x9FFF))
        return "".join(chr(rng.randint(0xA1, last)) for _ in range(rng.randint(2, 6)))

    def word() -> str:
        """Draw a known foreign word or any other one."""
        return rng.choice(_FOREIGN_WORDS) if rng.random() < 0.5 else _unknown_word(rng)

    return rng.choice(_FOREIGN_QUESTIONS).format(
        x=word(), y=word(), w=rng.choice(rng.choice((_PRODUCTS, _ASPECTS))), n=rng.randint(2, 99)
    )


# ------------------------------------------------------------------------- canaries and hash


def golden_prompts() -> tuple[GoldenPrompt, ...]:
    """Give the prompts whose exact answer health canaries compare."""
    topics = {topic.name: topic for topic in _TOPICS}
    updates = next(intent for intent in _SUPPORT if "how do I update my {p}?" in intent.questions)
    return (
        GoldenPrompt("sentiment", "The keyboard is excellent.", POSITIVE),
        GoldenPrompt("sentiment", "The delivery was not bad.", POSITIVE),
        GoldenPrompt(
            "sentiment", "The screen looks great, but the battery life is terrible.", NEGATIVE
        ),
        GoldenPrompt("sentiment", "The parcel with the laptop arrived on Tuesday.", NEUTRAL),
        GoldenPrompt(
            "chat",
            "What causes thermal throttling on GPU 3?",
            _topic_reply(topics["thermal throttling"], "why", "on GPU 3"),
        ),
        GoldenPrompt(
            "chat",
            "How do I fix out of memory errors in the chatbot service?",
            _topic_reply(topics["out of memory errors"], "fix", "in the chatbot service"),
        ),
        GoldenPrompt("chat", "How do I update my printer?", updates.reply.format(p="printer")),
        GoldenPrompt("chat", "What is the capital of France?", _FALLBACK_REPLY),
    )


def corpus_sha256(seed: int) -> str:
    """Hash a sample of both tasks and splits, in hexadecimal: the identity of the corpus."""
    digest = hashlib.sha256()
    splits: tuple[Split, ...] = ("train", "heldout")
    for split in splits:
        for draw in (sentiment_examples, chat_examples):
            for example in draw(1000, seed, split):
                digest.update(f"{split}\t{example.text}\t{example.answer}\n".encode())
    return digest.hexdigest()
