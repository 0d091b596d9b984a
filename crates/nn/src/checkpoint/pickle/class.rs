//! The classes and functions that a pickle may name: the whole list, and what each stands for.

use crate::checkpoint::dtype::Dtype;

/// The classes and functions that a pickle may name.
#[derive(Clone, Copy, Debug)]
pub(in crate::checkpoint) enum Class {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor`, `_v2`, `_v3`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter` and `_with_state`: the tensor is the first argument.
    RebuildParameter,
    /// `torch.FloatStorage` and the like.
    Storage(Element),
    /// `torch.float32` and the like.
    Element(Element),
    /// `torch.Size` and TorchScript's typed lists: the first argument itself.
    Same,
    /// A class of TorchScript code, `__torch__.*`.
    Module,
    /// A harmless class whose values are dropped.
    Opaque,
}

/// The type of a storage's elements.
#[derive(Clone, Copy, Debug)]
pub(in crate::checkpoint) enum Element {
    Known(Dtype),
    /// A type that exists and is not read here, such as complex64.
    Other(&'static str),
}

/// The whole list of what a pickle may name.
pub(in crate::checkpoint) fn allowed(module: &str, name: &str) -> Option<Class> {
    if module == "__torch__" || module.starts_with("__torch__.") {
        return Some(Class::Module);
    }
    Some(match (module, name) {
        ("collections", "OrderedDict") => Class::OrderedDict,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
            Class::RebuildTensor
        }
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Class::RebuildParameter
        }
        ("torch", "Size")
        | (
            "torch.jit._pickle",
            "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist"
            | "restore_type_tag",
        ) => Class::Same,
        ("torch", "device")
        | ("torch.serialization", "_get_layout")
        | ("_codecs", "encode")
        | ("numpy", "dtype")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Class::Opaque,
        ("torch.storage", "UntypedStorage" | "_UntypedStorage") => {
            Class::Storage(Element::Known(Dtype::U8))
        }
        ("torch", _) => match name.strip_suffix("Storage") {
            Some(kind) => Class::Storage(storage_element(kind)?),
            None => Class::Element(dtype_element(name)?),
        },
        _ => return None,
    })
}

fn storage_element(kind: &str) -> Option<Element> {
    Some(match kind {
        "Float" => Element::Known(Dtype::F32),
        "Half" => Element::Known(Dtype::F16),
        "BFloat16" => Element::Known(Dtype::Bf16),
        "Double" => Element::Known(Dtype::F64),
        "Long" => Element::Known(Dtype::I64),
        "Int" => Element::Known(Dtype::I32),
        "Short" => Element::Known(Dtype::I16),
        "Char" => Element::Known(Dtype::I8),
        "Byte" | "Untyped" => Element::Known(Dtype::U8),
        "Bool" => Element::Known(Dtype::Bool),
        "ComplexFloat" => Element::Other("complex64"),
        "ComplexDouble" => Element::Other("complex128"),
        "QUInt8" => Element::Other("quint8"),
        "QInt8" => Element::Other("qint8"),
        "QInt32" => Element::Other("qint32"),
        _ => return None,
    })
}

fn dtype_element(name: &str) -> Option<Element> {
    Some(match name {
        "float32" => Element::Known(Dtype::F32),
        "float16" => Element::Known(Dtype::F16),
        "bfloat16" => Element::Known(Dtype::Bf16),
        "float64" => Element::Known(Dtype::F64),
        "int64" => Element::Known(Dtype::I64),
        "int32" => Element::Known(Dtype::I32),
        "int16" => Element::Known(Dtype::I16),
        "int8" => Element::Known(Dtype::I8),
        "uint8" => Element::Known(Dtype::U8),
        "bool" => Element::Known(Dtype::Bool),
        "uint16" => Element::Other("uint16"),
        "uint32" => Element::Other("uint32"),
        "uint64" => Element::Other("uint64"),
        "complex64" => Element::Other("complex64"),
        "complex128" => Element::Other("complex128"),
        "float8_e4m3fn" => Element::Other("float8_e4m3fn"),
        "float8_e5m2" => Element::Other("float8_e5m2"),
        _ => return None,
    })
}
