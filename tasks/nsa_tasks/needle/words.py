"""Words that keys ("wandering lighthouse") and word values ("amber-anvil") are made of.

Nearly forty thousand pairs, so that keys stay distinct even among the distractors of a 128k haystack.
"""


def _words(block: str) -> tuple[str, ...]:
    return tuple(block.split())


ADJECTIVES = _words(
    """
    agile airy amber ashen autumnal azure balmy bashful blazing blissful blooming bold breezy brisk bronze
    bubbly candid carved cheerful chilly circular civic classic cobalt coastal copper cordial cosmic courtly
    coy crafty creamy crimson crystal cursory dapper daring dazzling dewy distant dizzy docile dreamy drifting
    droll eager earnest earthy eastern elastic emerald endless esteemed fabled fearless feathery fervent
    festive fickle floating fluent foggy frank frosty frugal furtive gallant genial gilded glacial gleaming
    glossy golden gracious granite gritty hazy hidden hollow humming hushed icy idle immense indigo inky ivory
    jade jaunty jolly jovial keen kindred lavish leafy lilac limber lofty loyal lucid lunar lush lyrical
    maroon mellow merry mighty mirthful misty moonlit mossy mystic nautical nimble noble nocturnal opal
    orderly outer painted pastel pensive perky pliant plucky polar posh prudent quaint quirky rapid regal
    roaming robust rosy royal rugged rural rustic sandy scarlet serene silent silken silver sincere sleek
    snowy solar solemn somber sonic spry stellar stoic sunken sunny swift tacit tame teal tender thrifty timid
    tranquil twilight upbeat urban valiant vast velvet verdant vibrant vivid wandering whimsical wild winding
    wintry wistful witty woven zany zealous zesty
    """
)

NOUNS = _words(
    """
    abacus acorn albatross almanac amulet antler anvil archway arrow aviary badger ballad bamboo banjo beacon
    beaver birch bison bonfire bramble buffalo bugle cactus canyon caravan cedar cello chalice chariot cheetah
    cobra comet condor coral cottage cougar crane crater cricket cypress daffodil dahlia daisy delta dolphin
    dome dragonfly dune eagle easel eclipse elm falcon fern ferret fiddle fjord flamingo fossil fountain fox
    galaxy galleon gazelle geyser giraffe glacier goblet gondola gorge grotto gull harbor harp hawk hazel
    hedgehog helmet heron hickory hornet iceberg iguana iris island jackal jaguar jasmine javelin jungle
    juniper kayak kestrel kite koala lagoon lantern lark laurel lemur leopard lighthouse lily lizard lobster
    locket lotus lute lynx magnolia mammoth mandolin mango maple marble marigold meadow medallion meteor
    minnow moat mongoose monolith monsoon moose mosaic nebula nectar oasis obelisk ocelot orchid oriole osprey
    otter owl pagoda panther papaya parrot pavilion pebble pelican penguin peony pinnacle planet plateau
    poplar poppy prairie prism puffin pyramid python quail quartz raccoon raven reef rhino rocket ruby saffron
    salmon sandal sapphire satchel scepter schooner sequoia shuttle sparrow sphinx spruce squirrel stallion
    sundial swan sycamore talisman tangerine temple thistle tiger topaz tortoise toucan trellis trident
    trumpet tulip tundra turbine turtle vessel viaduct viola volcano vulture walnut walrus waterfall willow
    wolf yacht zebra zeppelin
    """
)
