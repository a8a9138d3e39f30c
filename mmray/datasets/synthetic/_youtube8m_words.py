"""The words of the made-up YouTube-8M: what its classes are called and what is written about them."""

from __future__ import annotations

# Vertical (the real corpus's names): the nouns that name its classes, the root first; the words that go with them.
VERTICALS: dict[str, tuple[str, str]] = {
    "Arts & Entertainment": (
        "music,concert,guitar,drum,piano,singer,dance,film,cartoon,animation,trailer,violin,choir,orchestra,"
        "musician,theatre,ballet,painting,comedy,festival",
        "band song live stage album cover lyrics acoustic melody chorus audience studio solo tour scene actor premiere",
    ),
    "Games": (
        "game,shooter,racer,chess,puzzle,console,strategy,minecraft,arcade,poker,simulator,platformer,quest,"
        "dungeon,card,quiz,pinball,tetris,league,arena",
        "player level boss gameplay walkthrough multiplayer online mission score server weapon mod kill speedrun map",
    ),
    "Autos & Vehicles": (
        "vehicle,car,motorcycle,truck,engine,bus,train,airplane,helicopter,tractor,van,boat,tire,exhaust,"
        "locomotive,scooter,wagon,limousine,tram,caravan",
        "drive speed wheel race garage road turbo fuel brake driver highway diesel horsepower gear mechanic test",
    ),
    "Sports": (
        "sport,football,basketball,skateboarding,wrestling,baseball,hockey,boxing,cycling,swimming,surfing,"
        "skiing,tennis,golf,cricket,volleyball,running,climbing,rowing,fencing",
        "goal match coach team season ball trick league win champion training stadium final medal fans tournament",
    ),
    "Food & Drink": (
        "food,recipe,cake,pizza,coffee,bread,chocolate,soup,salad,beer,wine,cheese,noodle,sushi,pasta,cookie,"
        "steak,tea,juice,dessert",
        "cook oven taste kitchen bake sugar butter sauce chef dinner flour fresh fry delicious restaurant spice",
    ),
    "Computers & Electronics": (
        "computer,smartphone,laptop,tablet,software,keyboard,camera,printer,robot,router,processor,"
        "headphones,monitor,website,database,drone,speaker,microphone,television,projector",
        "screen install review battery windows code program unboxing usb download device update memory apps setup",
    ),
    "Beauty & Fitness": (
        "cosmetics,hairstyle,makeup,exercise,yoga,nail,tattoo,perfume,fitness,skincare,lipstick,massage,"
        "braid,gym,wig,eyeliner,manicure,shampoo,aerobics,pilates",
        "beauty skin routine workout muscle curl tutorial polish glow salon body haul strength brush tone",
    ),
    "Pets & Animals": (
        "animal,dog,cat,horse,bird,fish,aquarium,rabbit,parrot,puppy,kitten,snake,lizard,hamster,turtle,cow,"
        "sheep,pony,goat,spider",
        "cute breed feed tail wild pet zoo bark paw farm rescue fur cage veterinarian vet",
    ),
    "Travel": (
        "travel,hotel,beach,cruise,city,airport,island,mountain,resort,museum,temple,castle,harbour,"
        "waterfall,canyon,village,market,bridge,tower,lagoon",
        "trip tour vacation guide flight visit holiday scenery tourist sunset view passport journey luggage explore",
    ),
    "Home & Garden": (
        "home,garden,kitchen,furniture,sofa,flower,lawn,roof,bathroom,lamp,fence,door,window,chair,shed,"
        "bonsai,greenhouse,carpet,curtain,fireplace",
        "decorate wood plant repair build paint soil tool wall clean design seed grow renovation floor",
    ),
    "Hobbies & Leisure": (
        "hobby,fishing,camping,origami,knitting,model,kite,toy,magic,juggling,pottery,sewing,crochet,hunting,"
        "wedding,birthday,fireworks,balloon,lego,carving",
        "craft paper yarn handmade needle collect bait tent weekend fold pattern glue scale hook bead",
    ),
    "Science": (
        "science,chemistry,physics,astronomy,biology,rocket,telescope,volcano,dinosaur,laser,microscope,"
        "magnet,fossil,planet,comet,robotics,genetics,geology,nebula,satellite",
        "experiment laboratory space theory energy molecule atom research orbit gravity cell moon launch data light",
    ),
    "People & Society": (
        "family,baby,church,party,prayer,parade,ceremony,charity,community,marriage,pregnancy,twins,"
        "grandmother,choir boy,pilgrimage,protest,reunion,volunteer,tradition,costume",
        "love friends life story children mother faith culture mum kids together celebrate interview memories god",
    ),
    "News": (
        "news,election,weather,storm,interview,debate,flood,earthquake,politician,journalist,tornado,"
        "hurricane,summit,riot,speech,wildfire,reporter,campaign,scandal,broadcast",
        "report breaking president today channel press minister crisis anchor headline video world vote police damage",
    ),
    "Business & Industrial": (
        "factory,construction,crane,welding,farm,excavator,warehouse,machine,mining,harvester,bulldozer,"
        "forklift,sawmill,printing,packaging,textile,drill,conveyor,pump,lathe",
        "steel worker production company industry metal safety operator tools cut load concrete plant hydraulic heavy",
    ),
    "Jobs & Education": (
        "school,university,classroom,lecture,exam,teacher,library,graduation,homework,mathematics,algebra,"
        "grammar,alphabet,kindergarten,scholarship,career,apprentice,seminar,spelling,geometry",
        "learn student lesson study class course campus tutorial degree english question explain skills teach notes",
    ),
    "Shopping": (
        "fashion,dress,shoe,handbag,jewellery,watch,mall,sneaker,jacket,sunglasses,ring,necklace,hat,jeans,"
        "boutique,wardrobe,scarf,boot,shirt,coat",
        "style outfit sale brand price buy model trend discount collection wear gold leather shop lookbook",
    ),
    "Health": (
        "health,hospital,surgery,diet,dentist,medicine,nurse,vaccine,allergy,asthma,cancer,diabetes,therapy,"
        "pharmacy,bandage,ambulance,wheelchair,vitamin,sleep,pain",
        "doctor patient treatment weight disease natural symptoms care heart blood healthy cure remedy clinic brain",
    ),
    "Books & Literature": (
        "book,novel,poetry,comic,manga,fairy tale,author,library card,biography,dictionary,magazine,essay,"
        "fable,legend,superhero,villain,short story,bible,saga,memoir",
        "read chapter character story writer page fiction publisher hero poem plot fantasy review series ending",
    ),
    "Internet & Telecom": (
        "internet,blog,podcast,antenna,telephone,streaming,webcam,email,browser,radio,modem,vlog,channel,"
        "forum,cable,hotspot,voicemail,firewall,server,domain",
        "network signal wireless website google youtube subscribe link connection mobile account traffic "
        "phone post seo",
    ),
    "Finance": (
        "money,bank,stock,insurance,gold,bitcoin,tax,loan,budget,mortgage,coin,pension,auction,investment,"
        "currency,credit,dividend,audit,inflation,bond",
        "invest trading profit market income cash dollar rich forex broker fund wealth debt price earn",
    ),
    "Law & Government": (
        "police,army,court,prison,navy,soldier,lawyer,tank,parliament,parachute,judge,firefighter,submarine,"
        "veteran,border,embassy,missile,treaty,detective,patrol",
        "military officer law crime arrest uniform war badge federal justice trial force marine combat weapon",
    ),
    "Real Estate": (
        "house,apartment,skyscraper,villa,cottage,condominium,office,loft,bungalow,penthouse,mansion,barn,"
        "studio flat,warehouse loft,duplex,cabin,townhouse,hut,tower block,estate",
        "property bedroom sale rent pool luxury agent square buyer listing tour balcony acre condo mortgage",
    ),
    "Reference": (
        "language,map,history,encyclopedia,calendar,flag,museum piece,genealogy,geography,grammar book,"
        "archive,atlas,translation,alphabet chart,census,timeline,glossary,almanac,chronicle,catalogue",
        "ancient century word country learn pronunciation vocabulary origin empire facts documentary king year names",
    ),
}

# What makes a noun's class narrower.
MODIFIERS = (
    "electric acoustic vintage modern classic professional miniature japanese american italian french german "
    "indian mexican african british russian chinese korean spanish wooden plastic metal giant tiny outdoor "
    "indoor underwater winter summer spring autumn night royal military medieval antique digital solar "
    "portable homemade custom racing flying rural urban northern southern red blue green white black golden "
    "silver wild street mountain desert tropical"
)

# Words that tell nothing of a class.
COMMON_WORDS = (
    "video best new first part official full top amazing funny great big day time world free easy fast old "
    "high special original little home review show episode clip epic crazy cool super ultimate real beautiful "
    "perfect simple complete final extreme awesome favorite classic promo teaser intro challenge reaction "
    "compilation highlights moment morning night secret rare fun hot long short slow happy sad lost found "
    "king queen boys girls north south west east"
)

# What holds the parts of a title together; what says that the next word is not what it is about.
JOINING_WORDS = "with the in for on from at to of by and"
TURNING_WORDS = "without not no never versus instead before unlike"

TITLE_ENDINGS = ("HD", "(Official Video)", "2013", "2014", "- Part 1", "- Part 2", "!!!", "[1080p]", "#1")

# One line a language: Spanish, Russian, Japanese, Hindi, Arabic, Korean.
FOREIGN_WORDS = (
    "canción música vídeo oficial mejor cómo hacer niños fútbol cocina receta coche casa juego película fiesta",
    "видео музыка песня игра новый лучший машина дети урок футбол кухня рецепт дом праздник фильм",
    "動画 音楽 ゲーム 実況 料理 車 電車 歌 踊り 祭り 映画 日本 東京 犬 猫",
    "फिल्म गाना संगीत वीडियो खेल भोजन नृत्य समाचार शिक्षा परिवार त्योहार घर गाड़ी",
    "فيديو موسيقى أغنية لعبة طبخ سيارة فيلم رقص أخبار مدرسة بيت كرة",
    "음악 노래 게임 요리 자동차 영화 춤 뉴스 학교 가족 축구 여행",
)
