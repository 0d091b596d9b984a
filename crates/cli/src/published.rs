//! Parameters of the published systems as their papers report them, to be held against what is counted.

use ocelli_nn::{Parameter, Parameters};

/// A count that a paper, or who released a model, reports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reported {
    /// The part of the model, as its parameters' names begin, or `all`.
    pub(crate) part: &'static str,
    /// In millions.
    pub(crate) millions: f64,
    /// Why the count of the model differs; empty if it does not by more than [`CLOSE`].
    pub(crate) why: &'static str,
}

impl Reported {
    /// The share by which the parameters of the part are more than what is reported.
    pub(crate) fn off(&self, parameters: &Parameters) -> f64 {
        let is_of_part =
            |p: &&Parameter| self.part == "all" || p.name().split('.').next() == Some(self.part);
        let counted = parameters.iter().filter(|p| !p.is_buffer()).filter(is_of_part);
        let counted: usize = counted.map(Parameter::elements).sum();
        counted as f64 / (1e6 * self.millions) - 1.0
    }
}

/// Difference, as a share of what is reported, that rounding explains.
#[cfg(test)]
const CLOSE: f64 = 0.02;

const fn reported(part: &'static str, millions: f64, why: &'static str) -> Reported {
    Reported { part, millions, why }
}

const RESAMPLER: Reported = reported(
    "resampler",
    194.0,
    "the printed sizes make 170 M; heads of 128 behind a map of 3072 to 1536 would make 193.6 M",
);
const NFNET: Reported = reported("vision", 435.0, "");
const LANGUAGE: &str = "Chinchilla's layers are not published; counted are 12 D² a layer of the printed depth, \
                        and with a matrix for relative positions it would be 13 D²";

/// What is reported of a published size; nothing if no counts are printed.
pub(crate) fn counts(shape: &str) -> &'static [Reported] {
    match shape {
        // Alayrac et al. 2022, arXiv:2204.14198, Table 1; the tower from §3.1.
        "flamingo-3b" => {
            const {
                &[
                    NFNET,
                    RESAMPLER,
                    reported("language", 1400.0, LANGUAGE),
                    reported("gated", 1200.0, "1.16 is printed as 1.2"),
                    reported("all", 3200.0, "the sum of the parts above"),
                ]
            }
        }
        "flamingo-9b" => {
            const {
                &[
                    NFNET,
                    RESAMPLER,
                    reported(
                        "language",
                        7100.0,
                        "the printed 40 layers make 8.2 B; 32 layers of 13 D² would make 7.1 B",
                    ),
                    reported(
                        "gated",
                        1600.0,
                        "the printed widths make 1.8 B; an inner width of 2048 would make 1.6 B",
                    ),
                    reported("all", 9300.0, "the sum of the parts above"),
                ]
            }
        }
        "flamingo-80b" => {
            const {
                &[
                    NFNET,
                    RESAMPLER,
                    reported("language", 70_000.0, LANGUAGE),
                    reported(
                        "gated",
                        10_000.0,
                        "the printed widths make 8.4 B in the 12 printed layers",
                    ),
                    reported("all", 80_000.0, "the sum of the parts above"),
                ]
            }
        }
        // Ye et al. 2023, arXiv:2304.14178.
        "mplug-owl-7b" => const { &[reported("all", 7200.0, "")] },
        // The model card of THUDM/visualglm-6b.
        "visualglm-6b" => {
            const {
                &[
                    reported(
                        "language",
                        6200.0,
                        "reported with the head and the word table as one matrix, which the files hold apart",
                    ),
                    reported("all", 7800.0, ""),
                ]
            }
        }
        // Bai et al. 2023, arXiv:2308.12966, Table 1.
        "qwen-vl-7b" => {
            const {
                &[
                    reported("vision", 1900.0, "1.84 is printed as 1.9"),
                    reported("resampler", 80.0, "printed with one digit, 0.08 B"),
                    reported("language", 7700.0, ""),
                    reported("all", 9600.0, ""),
                ]
            }
        }
        // Brock et al. 2021, arXiv:2102.06171, Table 6: with the head for 1,000 classes.
        "nfnet-f0" => const { &[reported("all", 71.5, "")] },
        "nfnet-f1" => const { &[reported("all", 132.6, "")] },
        "nfnet-f2" => const { &[reported("all", 193.8, "")] },
        "nfnet-f3" => const { &[reported("all", 254.9, "")] },
        "nfnet-f4" => const { &[reported("all", 316.1, "")] },
        "nfnet-f5" => const { &[reported("all", 377.2, "")] },
        "nfnet-f6" => const { &[reported("all", 438.4, "")] },
        _ => &[],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;
    use crate::shapes;
    use ocelli_nn::Builder;

    #[test]
    fn what_differs_is_explained_and_nothing_else() {
        let mut held = 0;
        for shape in shapes::NAMES {
            let b = Builder::zeros();
            shapes::build(shape, &b).unwrap_or_else(|_| panic!("{shape}"));
            let parameters = b.finish().unwrap();
            for r in counts(shape) {
                let off = r.off(&parameters);
                assert_eq!(off.abs() > CLOSE, !r.why.is_empty(), "{shape} {}: {off:+.3}", r.part);
                held += 1;
            }
        }
        assert_eq!(held, 29);
    }
}
