"""Sentences in several languages, written for the demo.

The demo's texts, on which its tokenizer is trained too. Numbers, dates, money and foreign names exercise the text
rules.
"""

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
