//! Tables behind the repair of wrongly decoded text: encodings, and characters by their habits.
//!
//! The classes say which characters UTF-8 bytes turn into when they are read with a single-byte
//! encoding, and how those characters behave in real text. They are the facts that `ftfy` 6.3.1
//! decides by; the upper halves of the encodings are the published ones, where a byte that a
//! Windows code page leaves open is the C1 control of the same number.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Characters of the bytes 80 to FF, by encoding, in the order in which they are tried.
pub(super) const ENCODINGS: [(&str, &str); 10] = [
    ("latin-1", LATIN_1),
    ("windows-1252", WINDOWS_1252),
    ("windows-1251", WINDOWS_1251),
    ("windows-1250", WINDOWS_1250),
    ("windows-1253", WINDOWS_1253),
    ("windows-1254", WINDOWS_1254),
    ("windows-1257", WINDOWS_1257),
    ("iso-8859-2", ISO_8859_2),
    ("macroman", MACROMAN),
    ("cp437", CP437),
];

const LATIN_1: &str = "\
    \u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}\u{8d}\
    \u{8e}\u{8f}\u{90}\u{91}\u{92}\u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}\u{9a}\u{9b}\
    \u{9c}\u{9d}\u{9e}\u{9f}\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑ\
    ÒÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ";
/// Windows-1252, which the web reads Latin-1 as.
pub(super) const WINDOWS_1252: &str = "\
    €\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°\
    ±²³´µ¶·¸¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ";
const WINDOWS_1251: &str = "\
    ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\u{98}™љ›њќћџ\u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї°±Ііґµ¶·ё№є»јЅѕїАБВГД\
    ЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюя";
const WINDOWS_1250: &str = "\
    €\u{81}‚\u{83}„…†‡\u{88}‰Š‹ŚŤŽŹ\u{90}‘’“”•–—\u{98}™š›śťžź\u{a0}ˇ˘Ł¤Ą¦§¨©Ş«¬\u{ad}®Ż°\
    ±˛ł´µ¶·¸ąş»Ľ˝ľżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";
const WINDOWS_1253: &str = "\
    €\u{81}‚ƒ„…†‡\u{88}‰\u{8a}‹\u{8c}\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}\
    \u{9d}\u{9e}\u{9f}\u{a0}΅Ά£¤¥¦§¨©ª«¬\u{ad}®―°±²³΄µ¶·ΈΉΊ»Ό½ΎΏΐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡÒΣΤΥΦΧ\
    ΨΩΪΫάέήίΰαβγδεζηθικλμνξοπρςστυφχψωϊϋόύώÿ";
const WINDOWS_1254: &str = "\
    €\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}\u{9e}Ÿ\u{a0}¡¢£¤¥¦§¨©ª«\
    ¬\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏĞÑÒÓÔÕÖ×ØÙÚÛÜİŞßàáâãäåæçèéêëìíîïğñòóôõö÷øùú\
    ûüışÿ";
const WINDOWS_1257: &str = "\
    €\u{81}‚\u{83}„…†‡\u{88}‰\u{8a}‹\u{8c}¨ˇ¸\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}¯˛\u{9f}\
    \u{a0}¡¢£¤¥¦§Ø©Ŗ«¬\u{ad}®Æ°±²³´µ¶·ø¹ŗ»¼½¾æĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽßąįāćäåęēčé\
    źėģķīļšńņóōõö÷ųłśūüżž˙";
const ISO_8859_2: &str = "\
    \u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}\u{8d}\
    \u{8e}\u{8f}\u{90}\u{91}\u{92}\u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}\u{9a}\u{9b}\
    \u{9c}\u{9d}\u{9e}\u{9f}\u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ°ą˛ł´ľśˇ¸šşťź˝žżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃ\
    ŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";
const MACROMAN: &str = "\
    ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒ\
    œ–—“”‘’÷◊ÿŸ⁄€‹›ﬁﬂ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ";
const CP437: &str = "\
    ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙\
    ╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// What a character can stand for when UTF-8 was read with a single-byte encoding.
#[derive(Clone, Copy, Default)]
pub(super) struct Utf8Role {
    /// The first byte of a sequence of two (C2 to DF), three (E0 to EF), four (F0 to F3) bytes.
    pub(super) leads: [bool; 3],
    /// A later byte (80 to BF), or a space that was A0.
    pub(super) is_continuation: bool,
    /// A later byte that is not also common punctuation.
    pub(super) is_strict_continuation: bool,
}

const LEADS_TWO: &str = "Â-ßĀĂĆČĎĐĒĖĘĚĞĢĪİĶĹĻŁŃŅŇŌŐŘŚŞŠŢŪŮŰŲŹŻŽΒ-ΡΣ-ίВ-Я";
const LEADS_THREE: &str = "à-ïāăąćčďēėęěģīįķĺļŕźΰ-οа-п";
const LEADS_FOUR: &str = "ðóđğšπσру";
const STRICT_CONTINUATION: &str = "\
    \u{80}-¿ÆØæøĄąĽľŁłŒœŖŗŚśŞ-šŤťŸ-žƒˆˇ˘˛˜˝΄΅ΆΈΉΊΌΎΏЁ-ЌЎЏё-ќўџҐґ†‡‰‹›€№™";
const LOOSE_CONTINUATION: &str = " –—―‘’‚“”„•…";

static UTF8_ROLES: LazyLock<HashMap<char, Utf8Role>> = LazyLock::new(|| {
    let mut roles: HashMap<char, Utf8Role> = HashMap::new();
    let mut mark = |class: &str, set: fn(&mut Utf8Role)| {
        for c in members(class) {
            set(roles.entry(c).or_default());
        }
    };
    mark(LEADS_TWO, |role| role.leads[0] = true);
    mark(LEADS_THREE, |role| role.leads[1] = true);
    mark(LEADS_FOUR, |role| role.leads[2] = true);
    mark(LOOSE_CONTINUATION, |role| role.is_continuation = true);
    mark(STRICT_CONTINUATION, |role| {
        role.is_continuation = true;
        role.is_strict_continuation = true;
    });
    roles
});

/// The characters of a class in which `a-z` is a range.
fn members(class: &str) -> Vec<char> {
    let chars: Vec<char> = class.chars().collect();
    let mut members = Vec::new();
    for (i, &c) in chars.iter().enumerate() {
        match (c, chars.get(i + 1)) {
            ('-', Some(&last)) if i > 0 => members.extend(chars[i - 1]..=last),
            _ => members.push(c),
        }
    }
    members
}

/// The roles of `c`.
pub(super) fn utf8_role(c: char) -> Utf8Role {
    if c.is_ascii() && c != ' ' {
        return Utf8Role::default();
    }
    UTF8_ROLES.get(&c).copied().unwrap_or_default()
}

// Classes of characters that occur in wrongly decoded UTF-8, each the inside of `[...]`.
const C1: &str = "\u{80}-\u{9f}";
const COMMON: &str = "\u{a0}\u{ad}·´–—―…’";
const BAD: &str = "¦¤¨¬¯¸ƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}ªº";
const LAW: &str = "¶§";
const CURRENCY: &str = "¢£¥₧€";
const OPENING: &str = "¡«¿©΄΅‘‚“„•‹\u{f8ff}";
const CLOSING: &str = "®»˝”›™";
const NUMERIC: &str = "²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№";
/// Letters that faces are drawn with, so that odd neighbours prove nothing.
const FACES: &str = "Ò-ÖÙ-Üò-öø-üŐŌŪŲ°";
const UPPER_ACCENTED: &str = "À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ";
const LOWER_ACCENTED: &str = "ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ";
const UPPER_COMMON: &str = "ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я";
const LOWER_COMMON: &str = "ά-ωа-џ";
const BOX: &str = "│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓";
/// White space, with the separators U+001C to U+001F.
const SPACE: &str = r"\s\x1c-\x1f";
/// Letters, numbers and the underscore.
const WORD: &str = r"\p{L}\p{N}_";

/// Patterns of neighbours that real text hardly ever has; one match makes a text look broken.
pub(super) static UNLIKELY_NEIGHBOURS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let accented = format!("{LOWER_ACCENTED}{UPPER_ACCENTED}");
    let signs = format!("{CURRENCY}{NUMERIC}{LAW}");
    let any = format!("{accented}{BOX}{OPENING}{CLOSING}{signs}");
    let second_byte_1252 = format!("[{COMMON}{CURRENCY}{BAD}{NUMERIC}{OPENING}ŸŠ®°µ»]");
    let marks = format!("{C1}{BAD}{OPENING}{CLOSING}{CURRENCY}°");
    vec![
        format!("[{C1}]"),
        // Classes that avoid each other.
        format!("[{any}{BAD}][{BAD}]"),
        format!("[A-Za-z][{LOWER_COMMON}{UPPER_COMMON}][{BAD}]"),
        format!("[{BAD}][{any}]"),
        format!(
            "[{LOWER_ACCENTED}{LOWER_COMMON}{BOX}{CLOSING}{CURRENCY}{NUMERIC}][{UPPER_ACCENTED}]"
        ),
        format!("[{BOX}{CLOSING}{CURRENCY}{NUMERIC}][{LOWER_ACCENTED}]"),
        format!("[{LOWER_ACCENTED}{BOX}{CLOSING}][{CURRENCY}]"),
        format!("[{SPACE}][{UPPER_ACCENTED}][{CURRENCY}]"),
        format!("[{UPPER_ACCENTED}{BOX}][{NUMERIC}{LAW}]"),
        format!("[{accented}{BOX}{CURRENCY}{CLOSING}][{OPENING}][{NUMERIC}]"),
        format!("[{accented}{signs}{BOX}][{CLOSING}][{OPENING}]"),
        format!("[{CURRENCY}{NUMERIC}{BOX}][{OPENING}]"),
        format!("[a-z][{UPPER_ACCENTED}][{OPENING}{CURRENCY}]"),
        format!("[{BOX}][{FACES}]"),
        format!("[{accented}{signs}{OPENING}{CLOSING}][{BOX}]"),
        format!("[{BOX}][{CLOSING}]"),
        format!("[{accented}][{OPENING}{CLOSING}][{WORD}]"),
        "[Œœ][^A-Za-z]".to_owned(),
        format!("[{UPPER_ACCENTED}]°"),
        // Windows-1252: pairs, Arabic, South Asian scripts.
        format!("[ÂÃÎÐ][€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»{OPENING}{CLOSING}–—´]"),
        "×[²³]".to_owned(),
        format!("[ØÙ]{second_byte_1252}[ØÙ]{second_byte_1252}"),
        "à[²µ¹¼½¾]".to_owned(),
        "Ã[\u{a0}¡]".to_owned(),
        format!("[a-z][{SPACE}]?[ÃÂ] "),
        "^[ÃÂ] ".to_owned(),
        format!("[a-z.,?!{CLOSING}]Â[ {OPENING}{CLOSING}]"),
        // Mac Roman.
        "√[±∂†≠®™´≤≥¥µø]".to_owned(),
        "≈[°¢]".to_owned(),
        "‚Ä[ìîïòôúùû†°¢π]".to_owned(),
        "‚[âó][àä°ê]".to_owned(),
        // Windows-1251, the last on top of Latin-1.
        "вЂ".to_owned(),
        format!("[ВГРС][{marks}µ][ВГРС]"),
        "ГўВЂВ.[A-Za-z ]".to_owned(),
        // Windows-1253 and Windows-1257.
        "β€[™\u{a0}Ά\u{ad}®°]".to_owned(),
        format!("[ΒΓΞΟ][{marks}][ΒΓΞΟ]"),
        "ā€".to_owned(),
    ]
});
