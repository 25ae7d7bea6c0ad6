"""Words and sentence patterns of the generated haystack.

No digits, and neither "magic" nor "special": the filler must not look like a needle.
A slot such as {person} is filled from the list of that name; {a:thing} puts "a" or "an" before it.
"""

PERSON = """the miller|the old ferryman|her grandmother|the schoolteacher|a travelling merchant|the baker
his eldest daughter|the harbour master|the village doctor|a young apprentice|the gardener|the postman
my uncle|the widow next door|the choirmaster|a tired soldier|the librarian|the beekeeper|their landlord
the clockmaker|a visiting engineer|the blacksmith|the midwife|the town clerk|a retired captain|the shepherd
the bookbinder|our neighbour|the cook|a wandering fiddler|the painter|the lamplighter|the youngest brother
the surveyor|a nervous bridegroom|the innkeeper|the carpenter|a local historian|the night watchman
the seamstress|the botanist|the mayor|a passing stranger|the tailor|the fishmonger|the orphan
the astronomer|the judge|the coachman|a foreign student|the potter|the weaver|the translator
the keeper of the toll gate"""

PLURAL_PERSON = """the farmers|most of the children|the sailors|several travellers|the villagers
two of the sisters|the masons|the fishermen|all the cousins|the shopkeepers|a few of the elders
the musicians|the labourers|the guests|the clerks|the boatmen|the older pupils|the members of the council
the nuns|the quarrymen|the washerwomen|the surveyors"""

THING = """basket|lantern|ledger|kettle|wooden chest|letter|map|umbrella|bicycle|violin|brass key|blanket
ladder|mirror|saddle|clay jar|notebook|painting|rope|silver spoon|table|telescope|wheelbarrow|window
woollen coat|barrel|bell|bench|brick wall|candle|carriage|chair|compass|cradle|cupboard|curtain|drum|fence
flute|garden gate|hammer|hat|iron stove|loom|millstone|needlework cushion|oar|orchard ladder|parcel
pair of boots|plough|pocket watch|quilt|recipe book|rocking horse|sack of barley|scarf|sewing box|shovel
sign above the door|sledge|stone bowl|suitcase|teapot|trunk|wagon|weathervane|wheel|envelope|apron|inkwell
oil lamp|anchor chain|account book|old clock|overcoat|ivory comb|earthen oven"""

PLURAL_THING = """apples|letters|candles|chairs|clouds|carts|fences|geese|lanterns|olive trees|rooftops
ropes|shutters|stones|swallows|sheep|wild roses|wooden crates|boats|horses|pears|bells|baskets of plums
jars of honey|loaves of bread|coins|barrels of salt|oak planks|newspapers|potatoes|chestnuts
woollen stockings|bundles of reeds|nets|tiles|clay pipes|blankets|photographs"""

PLACE = """the harbour|the market square|the mill|the old bridge|the orchard|the railway station
the river bank|the schoolhouse|the chapel|the edge of the forest|the town hall|the library|the quarry
the valley|the upper meadow|the castle ruins|the post office|the bakery|the ferry landing|the vineyard
the cliff path|the courtyard|the crossroads|the dairy|the fish market|the granary|the hospital garden
the inn|the lighthouse|the long avenue|the marsh|the monastery|the narrow lane|the northern gate
the observatory|the pass|the pine wood|the print shop|the salt works|the shipyard|the southern slope
the stables|the tannery|the theatre|the village green|the water tower|the weir|the workshop"""

ADJECTIVE = """ancient|battered|beautiful|bright|broad|careful|cheap|clean|clumsy|cold|comfortable|crooked
curious|damp|dark|delicate|dusty|elegant|empty|enormous|faded|famous|fine|forgotten|fragile|gentle|gloomy
graceful|grey|half-finished|handsome|heavy|humble|ill-fitting|large|light|lonely|long|lopsided|modest|muddy
narrow|neat|noisy|odd|ordinary|pale|patient|plain|polished|pretty|quiet|rough|round|rusty|sad|shabby|sharp
short|simple|slender|slow|small|smooth|soft|solid|spare|splendid|square|stout|strange|strong|stubborn
sturdy|tall|thick|thin|tidy|tiny|torn|uneven|unusual|warm|weathered|wet|white|wide|worn|yellow"""

VERB = """admired|bought|borrowed|carried|cleaned|copied|counted|described|examined|finished|found|forgot
guarded|hid|inspected|lifted|lost|measured|mended|mentioned|moved|noticed|opened|ordered|painted|polished
praised|prepared|promised|repaired|replaced|returned|saved|searched for|sketched|sold|sorted|stored|studied
watched|weighed|wrapped|dropped|kept|left behind|looked after|pointed at|remembered|asked about|laughed at
argued over|quarrelled about|paid for|wrote about"""

MOVE = """walked|hurried|wandered|rode|travelled|strolled|drove|climbed down|ran|limped|marched|went back
returned|rowed|set out|made the long journey|followed the path|came home"""

STATE = """said nothing|slept badly|smiled|sat down to rest|waited for an hour|fell silent
shook the snow from both sleeves|laughed out loud|began to sing|lost all patience|kept a careful record
hesitated|changed the subject|looked at the sky|told the same story again|refused to explain|agreed at once
thought about the years before the war|grew tired of the noise|worked until dusk|counted the days
listened to the rain|hoped for better weather|complained about the price of coal|stayed for supper
missed the last coach|remembered every detail|drank a cup of tea|promised to write"""

WEATHER = """the fog lifted|it rained without a pause|the wind turned to the north|the first snow fell
the sun came out|a storm was gathering over the hills|the river had frozen|the air smelled of hay
the leaves began to fall|dust hung over the road|the moon stood above the roofs
the heat made every sound seem distant|the tide was low|thunder could be heard far away
the evening was mild and clear|frost covered the windows|a thin mist lay on the fields
the clouds moved quickly"""

TIME = """in the morning|late in the afternoon|after supper|before sunrise|on market day|that winter
during the harvest|a week later|towards the end of the summer|on the following day|at midnight|as a rule
for the first time in years|every autumn|on the last evening|soon after the wedding|around noon
in the early spring|not long ago|one rainy evening|by the next morning|shortly before the holidays
at the beginning of the month|long before the railway came"""

MANNER = """carefully|slowly|without a word|in great haste|with some pride|rather clumsily
as if nothing had happened|quietly|against all advice|with both hands|to everyone's surprise
in the usual way|by candlelight|with a sigh|almost by accident|for no clear reason|more than once
with great care|under protest|out of habit|in spite of the cold"""

OPINION = """it was a mistake|the winter would be long|nothing could be done about it
the road had been better in the old days|somebody ought to tell the council|the harvest would be a good one
the bridge would not last|the whole affair was exaggerated|such things happen in every family
a quiet life is worth a great deal|there was no hurry|the price was far too high
the letters had never been sent|the song came from the mountains|the clock had always been slow
visitors were bad for the garden|the roof needed new tiles|the dog was older than it looked
music made the work easier|the map left out half of the valley"""

TOPIC = """the price of bread|the new road|the colour of the shutters|the history of the mill
an old quarrel|the weather|the harvest|the repair of the roof|a lost inheritance|the best way to keep bees
the school play|the health of the horses|distant relatives|the plans for the railway
the taste of well water|a book that nobody had read|the shape of the bay|the rules of the guild
the election|the art of making cheese|the habits of migrating birds|the ferry timetable
a dream from the night before"""

PATTERNS = """{Person} {verb} the {thing}.|{Person} {verb} {a:adjective} {thing} near {place}.
{Time}, {person} {verb} the {plural_thing}.|{Plural_person} {move} to {place} because {weather}.
{Person} {state}, and {person} {state}.|{Weather}, so {person} {move} to {place}.
{Time}, {weather}, and {plural_person} talked about {topic}.|{Person} was sure that {opinion}.
{Plural_person} believed that {opinion}, although {person} knew better.
The {thing} that {person} {verb} was {adjective} and {adjective}.
Nobody at {place} {verb} the {adjective} {thing}.|{Person} {manner} {verb} the {plural_thing}.
{Manner}, {person} {verb} {a:thing}.|There was {a:adjective} {thing} beside {place}.
There were {plural_thing} all the way from {place} to {place}.|When {weather}, {person} {state}.
Because {person} {verb} the {thing}, {plural_person} {state}.
{Person} wrote a long letter about {topic} and {state}.
Between {place} and {place} stood {a:adjective} {thing}.|"{Opinion}," said {person}, and {state}.
"Perhaps {opinion}," {person} answered {manner}.|{Time}, nobody spoke of {topic} any more.
{Person} preferred {topic} to {topic}.|The {plural_thing} near {place} were {adjective}.
{Person} used to {keep} the {plural_thing} behind {place}.
{Plural_person} {verb} the {plural_thing} {manner}.|{Person} and {person} {move} past {place} {time}.
What {person} {verb} {time} was only {a:adjective} {thing}.
It took {person} most of the day to {keep} the {adjective} {thing}.
{Weather} while {person} {verb} the {thing} {manner}.
{Plural_person} gathered at {place} to hear about {topic}.|After that, {person} {state}.
{Person} had {a:adjective} {thing}, {a:thing} and very little else.|Even so, {opinion}.
By then {plural_person} {state}.|{Time} {person} {move} to {place}, {verb} the {thing} and {state}.
In those years {topic} mattered more than {topic}."""

KEEP = """mend|carry|clean|count|hide|paint|polish|repair|sort|store|watch|weigh|wrap|sketch|guard|measure
move|arrange"""
