"""Texts for `compare_tokenizer.py`: sentences of ten languages, and random ones of every kind that is treated in a way of its own."""

# ruff: noqa: RUF001 (signs that look like others are what is tested)

from __future__ import annotations

import html.entities
import random
import sys
from collections.abc import Callable, Iterator

SENTENCES = {
    "English": [
        "A calm piano melody in a minor key, with rain in the background — slow, sad and beautiful.",
        "80s synth-pop at 120 BPM: gated drums, a “fat” bass & bright pads; it's what you'd expect.",
        "Don't stop the band! They're playing rock'n'roll (with 2 guitars, 1 bass and drums)…",
        "Naïve café jazz, à la Django Reinhardt; the fiancée's résumé says ‘violinist’.",
        "Lo-fi hip hop beats to study to, $5 vinyl crackle, 24/7 — 100% chill.",
        "The crystalline sounds of the piano in a ballroom at 22°C, half past 7 o'clock.",
    ],
    "German": [
        "Ein ruhiges Klavierstück in a-Moll, das nach Regen klingt: langsam, traurig und schön.",
        "„Größer, härter, schneller“ – so muß der Techno um 3 Uhr früh in Köln klingen!",
        "Fröhliche Blasmusik aus Bayern mit Tuba, Hörnern und viel Gefühl; dazu ein Jodler.",
        "Übermäßig süße Geigen über einem tiefen Baß, ähnlich wie in »Schindlers Liste«.",
        "ÄRGER & FREUDE: laute Gitarren, ein dröhnendes Schlagzeug, 140 Schläge pro Minute.",
    ],
    "French": [
        "Une valse musette à l’accordéon, légère et mélancolique, comme un été à Montmartre.",
        "« C’est l’œuvre d’un maître », dit-il : des violons, un hautbois et le chœur.",
        "Du rap français énervé, 95 BPM, sur une boucle de piano très sombre… ça tape !",
        "Là-bas, où naît la forêt, un garçon joue de la flûte ; l'écho répond, très doux.",
        "Électro rêveuse des années 80 : synthé, écho, voix éthérée, cœur brisé.",
    ],
    "Russian": [
        "Спокойная мелодия фортепиано в миноре, медленная и грустная, под шум дождя.",
        "«Быстрее, громче!» — кричит толпа, и барабаны бьют всё сильнее; 140 ударов в минуту.",
        "Народная песня под балалайку и баян: весёлая, звонкая, с хором и топотом.",
        "Тёмный эмбиент с глубоким басом и далёким эхом в пустом соборе.",
        "Рок-группа из Санкт-Петербурга играет № 5 из нового альбома, очень громко!",
    ],
    "Greek": [
        "Μια ήρεμη μελωδία στο πιάνο, αργή και λυπημένη, με ήχο βροχής στο βάθος.",
        "«Πιο γρήγορα!» φωνάζει ο κόσμος· το μπουζούκι παίζει έναν χασάπικο.",
        "ΡΕΜΠΕΤΙΚΟ ΤΡΑΓΟΥΔΙ με μπουζούκι και μπαγλαμά, όπως στον Πειραιά του 1930.",
        "Ο ήχος της θάλασσας, ένας αυλός και μια φωνή που τραγουδά: «Ώρα καλή».",
        "Ηλεκτρονική μουσική, 128 χτύποι το λεπτό, βαθύ μπάσο και φωτεινά συνθεσάιζερ.",
    ],
    "Turkish": [
        "Yağmurlu bir gecede, hüzünlü ve yavaş bir piyano ezgisi; İstanbul'un ışıkları.",
        "“Daha hızlı!” diye bağırıyor kalabalık — davullar gürlüyor, zurna çalıyor.",
        "IŞIKLI BİR GÜN: bağlama, ney ve kemençe ile neşeli bir halk türküsü.",
        "Çok güçlü bir bas, dakikada 128 vuruş, öğleden sonra Şişli'de bir kulüp.",
        "Ağır çekim bir aşk şarkısı, ünlü bir şarkıcının sesiyle, yaylı çalgılar eşliğinde.",
    ],
    "Japanese": [
        "雨の音が聞こえる中、ゆっくりとした悲しいピアノのメロディー。",
        "「もっと速く！」と観客が叫ぶ。ドラムが激しく鳴り響く、１４０ＢＰＭ。",
        "和太鼓と尺八による、力強い祭りの音楽（にぎやかで楽しい）。",
        "８０年代のシティポップ、ｷﾗｷﾗしたシンセ、グルーヴィーなベース〜",
        "静かな夜・遠くの鐘・やさしいギター…ガッツとパワーのある歌声。",
    ],
    "Korean": [
        "비 오는 밤에 어울리는 느리고 슬픈 피아노 멜로디.",
        "“더 빨리!” 관객이 외친다 — 드럼이 점점 커지고, 분당 140박.",
        "가야금과 대금으로 연주하는 밝고 경쾌한 민요, 장구 장단과 함께.",
        "80년대 신스팝: 화려한 신디사이저와 깊은 베이스, 몽환적인 목소리.",
        "조용한 카페에서 흐르는 재즈 트리오, 따뜻하고 부드러운 콘트라베이스!",
    ],
    "Arabic": [
        "لحن بيانو هادئ وحزين مع صوت المطر في الخلفية.",
        "«أسرع!» يصرخ الجمهور، والطبول تدق بقوة أكبر؛ ١٤٠ نبضة في الدقيقة.",
        "موسيقى شرقية بالعود والقانون والناي، مَقام حجاز، إيقاع بطيء.",
        "أغنية شعبية مرحة، هل تسمع التصفيق؟ نعم، والدفوف أيضًا.",
        "موسيقى إلكترونية عميقة، 128 نبضة في الدقيقة، وأصوات فضائية.",
    ],
    "emoji": [
        "🎹🎸 chill vibes only 😎✨ lo-fi beats 🌧️☕",
        "party time 🥳🎉!!! EDM drop 💥💥 128bpm 🔊",
        "👩‍👩‍👧‍👦 family sing-along 🎤🇫🇷🇩🇪 with ❤️ and 👍🏽",
        "🎻 sad violin 😢… then ☀️ happy ending 🙂 (10/10 ⭐⭐⭐⭐⭐)",
        "▶️ play 🎵 loud ⚡ guitars 🤘🏿 no vocals 🚫🗣️ 1️⃣2️⃣3️⃣ go!",
    ],
}
_PUNCTUATION = [".", "!", "?", "…", ";", ",", " –", " —", ":", "!!", ""]
_QUOTES = [("“", "”"), ("„", "“"), ("« ", " »"), ("»", "«"), ("‘", "’"), ('"', '"'), ("(", ")"), ("'", "'"), ("「", "」"), ("", "")]

EDGES = [
    "",
    " \t\n",
    "I'LL, we'Re, it'S; don't '\u017f it'\u017f '\u017fx 'ſound",
    "!?;! a!b!; !!! !",
    "<|startoftext|>x<|ENDOFTEXT|> !!<|endoftext|> <|\u017ftartoftext|> <|endoftext| <|startof text|>",
    "<b> &amp;lt; &amp;amp;amp;",
    "&amp;lt;b&amp;gt; &amp;amp;amp; &nbsp; &#233; &#xD800; &notanentity;",
    "one &amp;eacute; line\nand <another> &amp;eacute;\nand &amp;eacute; a third\r\nfourth\rfifth",
    "this&not that &ampx &copycat &notit; &notin; &NotEqualTilde; &fjlig; &CounterClockwiseContourIntegral;",
    "P&EACUTE;REZ BUNDESSTRA&SZLIG;E &NTILDE; &nTILDE; &AMP; &FRAC12; &HELLIP;",
    "&#59; &#x3b; &#12a; &#xZZ; &#; &#x; &; &#1114112; &#x110000; &#0; &#13; &#128; &#x9f; &#xFFFE; &#11;",
    "&#" + "9" * 4300 + ";",
    "&#" + "9" * 4301 + ";",
    "&#x" + "9" * 9000 + ";",
    "&#" + "0" * 40 + "65;",
    "caf\u00e9 cafe\u0301 \ufb01 \u0149 \u1e9e \u0130stanbul \u0131",
    "\u0391\u03a3 \u0391\u03a3. \u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u03a3 \u0391\u00ad\u03a3\u00ad \u0391.\u03a3.\u0391",
    "שלום עולם مرحبا \u202eright to left\u202c",
    "\x1c\x85 a\x00b\u200bc\ufeff\x07 \u2028\u3000d\r\n\te",
    "\x1c a\x00b\u200bc\ufeff\x07 \u2028\u3000d\r\n\te",
    "\x1b[31mred\x1b[0m \x1b[ \x1b[12;; \x1b[1;2Kx \x1b[\u0661m \x1b[½m \x1b[\uff11m",
    "ǅ Ⅷ ½ ٣ 1234567890 x² ㎏ \u0345 α\u0345 Ⓐ \u2126 \u212a \u212b",
    "日本語の音楽 한국어 ไทย हिन्दी ﾊﾟﾋﾟﾌﾟ ￣ ｡ﾞ ﾡ ﾢￂ",
    "\ud800x \udfff",
    "â€œmojibakeâ€\x9d schÃ¶n",
    "a" * 900,
    "ab!" * 150 + "c" * 99,
    " " * 9999 + "x",
    "x" + " " * 10000,
    "\u1100\u1161\u11a8 \uac00\u11a8 \u1100\u1161\u1161 \u0344 \u0958 \u2adc \U0001d15e a\u0323\u0307 a\u0307\u0323 \u09c7\u09be",
    "&amp;" * 50,
    "&" + "amp;" * 300 + "lt;",
]


def sentence(rng: random.Random, language: str) -> str:
    """Return words of one or two sentences of a language, as they stand or shuffled, perhaps with other signs around."""
    words = rng.choice(SENTENCES[language]).split()
    if rng.random() < 0.4:
        words += rng.choice(SENTENCES[language]).split()
    if rng.random() < 0.5:
        rng.shuffle(words)
        words = words[: rng.randint(1, len(words))]
    if rng.random() < 0.3:
        at, (left, right) = rng.randrange(len(words)), rng.choice(_QUOTES)
        words[at] = left + words[at] + right
    text = " ".join(words) + (rng.choice(_PUNCTUATION) if rng.random() < 0.3 else "")
    if rng.random() < 0.2:
        text = rng.choice([str.upper, str.lower, str.title])(text)
    return text


def _broken(rng: random.Random) -> str:
    """A sentence that was read in the wrong encoding, whole or in part."""
    text = sentence(rng, rng.choice(list(SENTENCES)))
    coding = rng.choice(["latin-1", "windows-1252", "windows-1251", "windows-1250", "windows-1253", "windows-1254", "cp437", "macroman"])
    words = text.split(" ")
    share = rng.choice([0.1, 0.5, 1])
    return " ".join(word.encode().decode(coding, "replace") if rng.random() < share else word for word in words)


def _from_ranges(rng: random.Random, ranges: list[tuple[int, int]], most: int = 20) -> str:
    """Characters of a few ranges, in words."""
    some = rng.sample(ranges, min(len(ranges), rng.randint(1, 3)))
    return "".join(" " if rng.random() < 0.1 else chr(rng.randint(*rng.choice(some))) for _ in range(rng.randint(1, most)))


_SCRIPTS = [
    *[(start, start + 0x7F) for start in range(0x80, 0xD800, 0x80)],
    *[(start, start + 0x7F) for start in range(0xE000, 0x20000, 0x80)],
    (0x20000, 0x3134F),
    (0xE0000, 0xE01EF),
    (0x10FF80, 0x10FFFF),
]
_ASCII = [(0x41, 0x5A), (0x61, 0x7A)]
_MARKS = [*_ASCII, (0x300, 0x36F), (0xC0, 0x24F), (0x370, 0x3FF), (0x1E00, 0x1FFF), (0x900, 0xDFF), (0x1100, 0x11FF), (0xAC00, 0xD7A3)]
_CASES = [*_ASCII, (0x391, 0x3C9), (0x3A3, 0x3A3), (0x2E, 0x2E), (0xAD, 0xAD), (0x2B0, 0x36F), (0x130, 0x131), (0x1F00, 0x1FFF)]
_WIDE = [(0xFF00, 0xFFEF), (0xFB00, 0xFB06), (0x2010, 0x2030), (0x1C4, 0x1CC), (0x132, 0x133), (0x3000, 0x3002), (0xFFF0, 0xFFFD), (0, 127)]
_CLUES = (
    "ÂÃÎÐØÙàâãÄÅéïðóŒœŸŠŽžš€‚ƒ„…†‡ˆ‰‹›‘’“”•–—˜™¡¢£¤¥¦§¨©ª«¬\xad®¯°±²³´µ¶·¸¹º»¼½¾¿×÷\xa0\x81\x8d\x9d"
    "ВГРСвЂўабвΒΓΞΟβάéèñüßāąłő│█√≈�ıİaZz1 .,!?\n"
)


def _entities(rng: random.Random) -> str:
    names, text = _ENTITIES, ""
    for _ in range(rng.randint(1, 6)):
        form = rng.random()
        if form < 0.5:
            name = rng.choice(names)
            name = rng.choice([name, name, name.rstrip(";"), name.upper(), name.lower(), name[: rng.randint(1, len(name))], name + "x"])
            text += rng.choice(["&", "&", "&amp;", "&amp;amp;"]) + name
        elif form < 0.8:
            number = rng.choice([rng.randint(0, 0x180), rng.randint(0, 0xFFFF), rng.randint(0, 0x120000)])
            text += f"&#{number}" if rng.random() < 0.5 else f"&#{rng.choice('xX')}{number:x}"
            text += rng.choice([";", ";", "", "a;", " "])
        else:
            text += rng.choice([" ", "a", "é", "&", "#", ";", "<", "日", "\n", "&#", "&x", "1"])
    return text


_ENTITIES = sorted(html.entities.html5)
_BITS = [
    *["'s", "'\u017f", "'LL", "'re", "'", "<|startoftext|>", "<|endoftext|>", "<|", "|>", "&amp;", "&lt;", "&#x", "<", "!", "?"],
    *["é", "e\u0301", "Σ", "ΑΣ", "İ", "ı", "ſ", " ", "\t", "\r", "\n", "\r\n", "\u2028", "½", "7", "٣", "ﬁ", "ﬀ", "ŉ", "Ａ", "ｶﾞ"],
    *["“", "’", "–", "\x1b[", "\x1b[0m", "31;", "m", "\x00", "\x07", "\ufeff", "\u200d", "\u206a", "\u0345", "日本", "한"],
    *["\u1100\u1161", "ไทย", "हि", "مَ", "🎹", "👩‍👧", "x", "music", "THE", "Ⅷ", "㎏"],
]


def _bits(rng: random.Random) -> str:
    return "".join(rng.choice(_BITS) for _ in range(rng.randint(1, 14)))


def _words(rng: random.Random) -> str:
    """Latin letters, as words that the merges know and that they do not."""
    known = [word for texts in SENTENCES.values() for text in texts for word in text.split()]
    return " ".join(
        rng.choice(known) if rng.random() < 0.4 else "".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(1, 30)))
        for _ in range(rng.randint(1, 8))
    )


KINDS: dict[str, Callable[[random.Random], str]] = {
    "words": _words,
    "any script": lambda rng: _from_ranges(rng, _SCRIPTS),
    "marks": lambda rng: _from_ranges(rng, _MARKS),
    "cases": lambda rng: _from_ranges(rng, _CASES),
    "widths": lambda rng: _from_ranges(rng, _WIDE),
    "entities": _entities,
    "bits": _bits,
    "clues of broken text": lambda rng: "".join(rng.choice(_CLUES) for _ in range(rng.randint(1, 12))),
    "broken text": _broken,
}


def texts(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Yield pairs of a kind and a text: all edge cases, then `count` random ones, half of them in the languages of `SENTENCES`."""
    rng = random.Random(seed)
    yield from (("edges", text) for text in EDGES)
    for _ in range(count):
        kind = rng.choice(list(SENTENCES) if rng.random() < 0.5 else list(KINDS))
        yield kind, sentence(rng, kind) if kind in SENTENCES else KINDS[kind](rng)


def every_character() -> Iterator[tuple[str, str]]:
    """Yield texts that hold each character of Unicode between letters, between numbers, and before a mark."""
    for c in range(sys.maxunicode + 1):
        if not 0xD800 <= c < 0xE000:
            yield "every character", f"a{chr(c)}b 1{chr(c)}1 Σ{chr(c)}\u0301'{chr(c)}"
