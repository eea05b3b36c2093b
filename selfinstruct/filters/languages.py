"""Which language a text is in: by script, and within Latin script by words that a language uses all the time. No model, no download.

Every script and every word is evidence for one or more languages; the best must stand clear of the second, else the answer is ``und``::

    "Discuss briefly whether zoos do more good than harm."    en 6.5, pt 0.5: six English words, and do, which is in both
    "Compare Los Angeles and Las Vegas."                      en 2: names in the middle of a sentence are no evidence
    "Translate into English: Ich bin müde und will heim."     und: what is asked and what is given are in two languages

A filter that keeps English lets ``und`` pass by default, so doubt costs a foreign row now and then, and no English one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from sft.text.tokens import HAN, HANGUL, KANA

_QUOTED = re.compile(r"\"[^\"\n]*\"|(?<!\w)'[^'\n]*'(?!\w)|[“「『《‘][^”」』》’\n]*[”」』》’]|`[^`\n]*`|&#?\w+;")
_MATERIAL = re.compile(r"[:：\n]")  # behind the first one stands what the task is about, often in another language
# a whole word, and no part of an address or of code
_LATIN = re.compile(r"(?<![\w@./\\])[A-Za-z\u00c0-\u024f]++(?![\w@/\\(\[]|\.\w| *[=+<>])")
_SENTENCE_START = re.compile(r"(?:^|[.?!:;…¿¡(\[\n•*·–—-])\s*$")
_WORD = 60  # what a word of one language weighs; one that n languages share weighs 60 / n for each
_CHARACTER = 30  # a character of a script without spaces: about half a word
_CLEAR = 1.5  # the best must weigh this many times the second, and at least a word more

_SPACELESS = {"zh": re.compile(f"[{HAN}]"), "th": re.compile("[\u0e01-\u0e4e]")}
_SPACED = {
    "ko": re.compile(f"[{HANGUL}]+"),
    "ru": re.compile("[\u0400-\u052f]{2,}"),
    "ar": re.compile("[\u0600-\u06ff\u0750-\u077f]{2,}"),
    "hi": re.compile("[\u0900-\u097f]{2,}"),
    "el": re.compile("[\u0370-\u03ff]{2,}"),  # a single one is mostly a formula's
    "he": re.compile("[\u0590-\u05ff]{2,}"),
}
_KANA = re.compile(f"[{KANA}]")
_CHINESE_ONLY = re.compile("[这们吗呢吧说么对让语词译释样还没给请這嗎們說麼]")  # not written so in Japanese, or hardly

# Words that a language uses all the time, those of instructions among them. One that another language uses too stands in both lists,
# and rare English ones stand where they look like common foreign ones (die, court, van). No single letters: y is also a variable.
_WORDS = {
    "en": """
        about above ad add after again against ai al all also am among an analyse analyze and another answer any are arrange as ask at
        avant be because been before being below best between bin both briefly but by calculate can car case categorize change check chi
        choose classify col com come comment common compare compile complete compose compute conclude construct convert correct could
        count court create dare day define den describe design detail determine develop did die difference different dire discuss do
        does don done door dove down draft due during each edit either elk em english era est estimate evaluate even ever every example
        examples explain fare few fill fin find fix following for from genera generate get give given go good grand gut had has hat have
        hay he help her here him his hoe how idea identify if imagine in ins into is it its just keep know leg less let letter like list
        lit long look los made main make man many match me men met might mine more most much must my name need new next no non nor not
        note now num number numbers of off on once one only op or order organize other our out outline over own pair paragraph
        paraphrase part people per phrase phrases pick pie place please plus poem point pour predict prima propose provide put question
        questions rank rate read recommend red replace resume review rewrite sage same sans say sea second see sentence several she
        short should show sin since so sole solve some something son sort state still story such suggest sum summarise summarize sur
        take tale tan tell ten text than that the their them then there these they thing think this those three through time to too
        translate turn two type under until up use used using van very vine want war was way we were what when where which whether while who
        whom whose why will with within without word words would write year yes yet you your
    """,
    "fr": """
        afin ai aide ainsi alors analyse anglais après au aucun aussi autre autres aux avant avec avez beaucoup bien car ce cela celle
        celui ces cet cette ceux chaque chez choisis classe classez combien comme comment compare comparez complète corrige court courte
        crée créez dans de depuis des deux dire dis dit donc donne donnez dont du décris décrivez elle elles en entre est et eux
        explique expliquer expliquez faire fais fait faites faut fonctionne français génère générez ici identifie identifiez il ils
        imagine invente je jour la laquelle le les lesquels leur leurs liste listez lui mais meilleur mes mieux moi moins mon mot mots
        même ne nomme nommez nos notre nous on ont ou où par parce pas pendant personne peut peuvent phrase phrases plus plusieurs pour
        pourquoi pouvez poème propose proposez puis qu quand que quel quelle quelles quelque quelques quels qui quoi raconte rien rédige
        rédigez répondez réponds résume résumez réécris sa sans se sera ses si soit son sont sous suggère suivant suivante suivantes
        suivants sur ta te texte toi ton toujours tous tout toute toutes traduis traduisez trois trouve trouvez très tu un une utilise
        utilisez vers voici vos votre vous écris écrivez énumère énumérez étaient était été être
    """,
    "de": """
        aber alle allen aller alles als also am an andere anderen antworte auch auf aus beantworte begründe bei beim beispiel beispiele
        berechne beschreibe beschreiben bin bis bitte bleibt braucht da damit dann daran das dass davon dein deine dem den denn der
        deren des dessen deutsch dich die dies diese diesem diesen dieser dieses dir doch drei du durch ein eine einem einen einer eines
        einfach einfaches englisch englische entwirf er erfinde erkläre erklären erstelle erstellen erzähle es etwas euch fasse finde
        folgende folgenden folgender folgendes formuliere formulieren für gegen geht gib gibt gut haben hat hatte hier ich ihm ihn ihnen
        ihr ihre ihrem ihren im immer ins ist jede jeden jeder jedes jetzt kann kannst kein keine keinen korrigiere kurz kurze kurzen
        können lang machen man mehr mein meine mich mir mit muss müssen nach nenne nennen nicht nichts noch nur ob oder ohne ordne sage
        satz schlage schon schreibe schreiben sehr sein seine seiner sich sie siehe sind so soll sollte sondern text um und uns unser
        unter vergleiche viel viele vier vom von vor wann war waren warum was wegen welche welchen welcher welches wenn wer werden wie
        wieder will wird wo wofür wurde wurden wäre zu zum zur zusammen zwei zwischen zähle über übersetze übersetzen
    """,
    "es": """
        al algo algunas algunos antes aquí así aun aunque ayuda año bien cada calcula casa clasifica como compara completa con considera
        contra corrige corta corto crea cual cuales cuando cuál cuáles cuándo cuánto cuántos cómo da dame de debe decir define del
        describe descripción desde después donde dos durante dónde ejemplo ejemplos el ella ellos en encuentra entre enumera era eres es
        esa escribe escribir ese eso español esta estas este esto estos está están explica explicar forma frase frases fue genera ha
        había hacer hasta hay haya haz identifica imagina indica inglés la las le lista lo los me mejor menos mi mientras mismo mucho
        muy más nada ni no nombra nombre nos nosotros nuestra nuestro oración os otra otro otros palabra palabras para pero poco poema
        por porque prepara proporciona propón puede pueden puedes pues que quién qué redacta reescribe responde resume según ser si sido
        siempre siguiente siguientes sin sobre son su sugiere sus sí tabla también tan te texto tiene tienen toda todas todo todos
        traduce traducir tres tu tus un una unas uno unos usa usando usted ya yo
    """,
    "pt": """
        agora ainda algum alguma algumas alguns além ano antes ao aos apenas após aquele as assim através até bem cada calcule casa
        classifique com como compare complete conte corrija crie cuja da dado dados das de depois descreva desde deve do dois dos duas
        durante dê ela elas ele eles em enquanto entre era escreva escrever essa esse esta estas este estes está eu exemplo exemplos
        explique faça ficar foi foram forma forneça frase frases gere há identifique imagine inglês isso isto já lhe liste lo mais mas
        me melhor menos meu minha muito muitos na nas nem no nos nossa nosso num numa não onde os ou outra outro outros palavra palavras
        para pela pelas pelo pelos pode podem poema por porque português pouco pra primeiro proponha quais qual qualquer quando quanto
        que quem reescreva responda resuma se segue seguinte seguintes seguir sem sempre ser seu seus sido sobre sua suas sugira são só
        também te tem tempo ter texto toda todas todo todos traduza três tudo têm um uma umas uns usando use você vocês é
    """,
    "it": """
        ad agli ai al alcune alcuni alla alle allo altri altro anche ancora breve calcola che chi ci classifica col come completa con
        confronta considera correggi così crea cui da dagli dai dal dalla dalle dammi degli dei del dell della delle dello descrivi di
        dimmi dopo dove due durante ed elenca era erano esempi esempio essere fa facile fare fatto fino fornisci fra frase frasi
        funziona genera già gli ha hanno ho identifica il immagina in indica inglese inventa io italiano la le lei lo loro ma meno mi
        mia migliore mio molto ne negli nei nel nella nelle nello nessun no noi non nostro ogni oppure parola parole per perché però più
        poco poesia poi possono prima proponi può qual qualche quale quali quando quanti quanto quella quelle quello questa queste
        questi questo qui racconta riassumi riscrivi rispondi scrivere scrivi se seguente seguenti sei senza si sia siamo sono sotto
        spiega spiegami stato sua sue suggerisci sugli sui sul sulla sulle suo suoi te testo tra traduci tre trova tu tutta tutte tutti
        tutto un una uno usa usando utilizza vengono vi viene voi vuoi è
    """,
    "nl": """
        aan al alle als andere anders beantwoord bedenk beide ben beschrijf bij dan dat de deze die dit door drie dus een eenvoudig
        eenvoudige elk elke engels er even gebruik gebruikt geef geen genereer geweest had hebben heeft hem het hier hij hoe hoeveel hun
        iets ik in is ja je jij jou jouw jullie kan kies kort korte kun kunnen leg lijst maak maar maken meer meest men met mij mijn
        moet moeten na naar nederlands niet niets noem nog nooit nu of om omdat omschrijf onder ons onze ook op over samen schrijf
        schrijven stel te tegen ten toch toen tot tussen twee uit uitleg uw van vat veel verbeter vergelijk verhaal vertaal vertel
        verzin volgende voor voorbeeld voorbeelden vul waar waarom wanneer want waren was wat we weer welk welke werd werkt wie wil
        worden wordt zal ze zee zeer zich zij zijn zin zinnen zo zoals zoek zonder zou zullen één
    """,
    "id": """
        ada adalah agar akan aku anda antara apa apakah atas atau bagaimana bagi bahasa bahwa banyak baru beberapa belum berapa
        berdasarkan berikan berikut berisi bisa buat buatlah cara contoh daftar dalam dan dapat dari dengan deskripsikan di dia dua
        gunakan hal hanya harus hitung hitunglah indonesia inggris ini itu jadi jangan jelaskan jika juga kalimat kami kamu karena kata
        ke kepada ketika kita klasifikasikan lagi lain lalu lebih lima maka mana mengapa menggunakan menjadi mereka milik nama namun
        oleh orang pada para pendek perbedaan pertanyaan puisi ringkas ringkaslah saat sangat sarankan satu saya sebagai sebuah sebutkan
        secara sedang seekor sehingga sekarang semua seorang seperti sering serta setiap siapa suatu sudah supaya susun tahun tanpa teks
        telah tentang tentukan terdiri terhadap terjemahkan tersebut tetapi tidak tiga tulis tulislah ubah ubahlah untuk yaitu yang
    """,
}
_VOTES: dict[str, list[str]] = {}
for _language, _words in _WORDS.items():
    for _word in _words.split():
        _VOTES.setdefault(_word, []).append(_language)

LANGUAGES = ("en", "zh", "ja", "ko", "fr", "de", "es", "pt", "it", "nl", "id", "ru", "ar", "hi", "th", "el", "he")
"""What :func:`language` can answer, besides ``und`` for undecided. ``ru`` and ``ar`` stand for their whole scripts."""


def language(text: str) -> str:
    """The language of a text, as an ISO 639-1 code of :data:`LANGUAGES`, or ``und`` where the text does not tell.

    What stands in quotes does not count, unless all of it does. Where the part before the first colon or line break is in another
    language than the whole, the answer is ``und``.
    """
    whole, head = map(_judge, _whole_and_head(text))
    return whole if head in (whole, "und") else "und"


def foreign(text: str, keep: Collection[str]) -> str | None:
    """The language of a text that is clearly in none of ``keep``, else None.

    ``language`` may not know which of two sisters it is, and still none of ``keep`` is: the answer is then ``es or pt``.
    """
    found = language(text)
    if found != "und":
        return None if found in keep else found
    whole, head = _whole_and_head(text)
    if not (_strange(whole, keep) and _strange(head, keep)):
        return None
    return " or ".join([code for code, _ in _latin(whole)[0].most_common() if code not in keep][:2])


def _whole_and_head(text: str) -> tuple[str, str]:
    bare = _QUOTED.sub(" ", text)
    text = bare if any(map(str.isalpha, bare)) else text
    return text, _MATERIAL.split(text.strip(), maxsplit=1)[0]


def _judge(text: str) -> str:
    words, known = _latin(text)
    # English words that Dutch knows too are no less evidence against Chinese: across scripts, known words count whole
    both = _scripts(text)
    both["latin"] = _WORD * len(known)
    found = _clear(both)
    return _clear(words) if found == "latin" else found


def _strange(text: str, keep: Collection[str]) -> bool:
    """Whether words that no kept language knows outweigh all others by two at least."""
    known = _latin(text)[1]
    ours = sum(any(code in keep for code in _VOTES[word]) for word in known)
    theirs = len(known) - ours - 1
    return theirs > 0 and _clear(Counter(ours=_WORD * ours, theirs=_WORD * theirs) + _scripts(text)) == "theirs"


def _clear(evidence: Counter[str]) -> str:
    (best, most), (_, next_most) = [*evidence.most_common(2), ("und", 0), ("und", 0)][:2]
    return best if most - next_most >= _WORD and most >= _CLEAR * next_most else "und"


def _scripts(text: str) -> Counter[str]:
    """What other scripts say, in sixtieths of a word."""
    evidence: Counter[str] = Counter()
    if text.isascii():
        return evidence
    for code, pattern in _SPACELESS.items():
        evidence[code] = _CHARACTER * len(pattern.findall(text))
    for code, pattern in _SPACED.items():
        evidence[code] = _WORD * len(pattern.findall(text))
    kana, han = len(_KANA.findall(text)), evidence["zh"] // _CHARACTER
    if kana and (kana > han or (kana * 10 >= han and not _CHINESE_ONLY.search(text))):
        evidence["ja"], evidence["zh"] = _CHARACTER * (kana + han), 0
    return evidence


def _latin(text: str) -> tuple[Counter[str], list[str]]:
    """What words of Latin script say, in sixtieths of a word, and those of them that are known at all."""
    evidence: Counter[str] = Counter()
    known, shouted = list[str](), text.isupper()
    for match in _LATIN.finditer(text):
        word = match[0]
        if not shouted and word[0].isupper():
            # in the middle of a sentence a capital makes a name, and several an acronym: Los Angeles, Les Misérables, EU
            begins = _SENTENCE_START.search(text[max(0, match.start() - 8) : match.start()])
            if not begins or (len(word) > 1 and word.isupper()):
                continue
        votes = _VOTES.get(word.lower(), ())
        known += [word.lower()] if votes else []
        for code in votes:
            evidence[code] += _WORD // len(votes)
    return evidence, known
