"""Sentences in several languages, written for the demo, and a small tokenizer trained on them.

Numbers, dates, money and foreign names exercise the text rules.
"""

import io
import string

import sentencepiece

VOCABULARY_SIZE = 1200

SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "The ferry leaves at 7:45, so we have twenty minutes for breakfast.",
        "What's the name of the small bridge behind the mill?",
        "She paid $12.50 for the ticket and kept the change in her coat.",
        "On March 3rd, 1987, the river rose above the second mark.",
        "Please turn the lamp a little to the left.",
        "There's a garden on the roof; nobody waters it in winter.",
        "He counted 128 boats, and then the fog came back.",
        "Quiet evenings are best for reading old letters.",
        "It's warm.",
        "The zebra jumped over the quick brown fox and vexed a lazy dog.",
    ),
    "zh": (
        "今天早上的火车晚点了十五分钟。",
        "我们在2024年搬到了河边的房子。",
        "请把窗户关上，外面的风太大了。",
        "这本书一共花了36.5元。",
        "他说明天会下雨，你记得带伞。",
        "小猫在屋顶上睡着了。",
        "列夫·托尔斯泰的书放在第三层。",
        "你好，世界！",
    ),
    "ja": (
        "今日は少し早く家に帰ります。",
        "駅の前に新しい本屋ができました。",
        "この道をまっすぐ行くと、海が見えます。",
        "おはようございます。",
        "猫が三匹、庭で寝ています。",
        "コーヒーを一杯ください。",
        "明日の会議は十時からです。",
    ),
    "am": (
        "ሰላም፣ እንዴት አደርክ?",
        "ዛሬ ጠዋት ዝናብ ዘንቧል።",
        "ልጆቹ በወንዙ አጠገብ ይጫወታሉ።",
        "ቡና መጠጣት እወዳለሁ።",
        "መጽሐፉን ጠረጴዛው ላይ አስቀምጥ።",
        "ነገ ወደ ገበያ እንሄዳለን።",
    ),
    "fr": (
        "Le marché ouvre à huit heures, même en hiver.",
        "Où avez-vous trouvé cette vieille carte ?",
        "Il a planté trois cerisiers derrière la grange.",
        "La neige a couvert les toits pendant la nuit.",
        "Ça suffit, merci beaucoup !",
        "Noël approche et les fenêtres brillent déjà.",
    ),
    "de": (
        "Der Zug nach Süden fährt um halb neun.",
        "Größere Schiffe müssen draußen vor dem Hafen warten.",
        "Kannst du mir bitte die Tür öffnen?",
        "Im Oktober riecht der Wald nach Äpfeln und Regen.",
    ),
}
"""By language code."""


def train_tokenizer() -> bytes:
    """Train a BPE model with byte fallback and return the bytes of its .model file. Deterministic.

    The text is prepared like in the text pipeline: upper case, spaces around Chinese characters. Characters that are
    not in it are encoded as bytes, so no text is unknown.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_training_lines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        required_chars=string.ascii_uppercase + string.digits + "'!,-.?…",
        bos_id=0,  # these ids are as in the published tokenizer
        eos_id=1,
        unk_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _training_lines() -> list[str]:
    lines = [sentence.upper() for sentences in SENTENCES.values() for sentence in sentences]
    return ["".join(f" {char} " if "\u4e00" <= char <= "\u9fff" else char for char in line) for line in lines]
