//! Tensors of V2 as row-major little-endian bytes: decoded, checked, and written back.
//!
//! None means that the request does not fit: Python then says what is wrong with it.

use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};
use ort::tensor::TensorElementType;

use crate::contract::inference::InferTensorContents;

const MAX_RANK: usize = 32;
const MAX_ELEMENTS: i64 = 1 << 28; // a shape of nothing but its header must not reserve memory

/// The datatypes of fixed size; text is Python's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bf16,
}

use Datatype::*;

pub const NAMES: [(Datatype, &str); 13] = [
    (Bool, "BOOL"),
    (Uint8, "UINT8"),
    (Uint16, "UINT16"),
    (Uint32, "UINT32"),
    (Uint64, "UINT64"),
    (Int8, "INT8"),
    (Int16, "INT16"),
    (Int32, "INT32"),
    (Int64, "INT64"),
    (Fp16, "FP16"),
    (Fp32, "FP32"),
    (Fp64, "FP64"),
    (Bf16, "BF16"),
];

impl Datatype {
    pub fn of(name: &str) -> Option<Datatype> {
        NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(datatype, _)| *datatype)
    }

    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }

    pub fn size(self) -> usize {
        match self {
            Bool | Uint8 | Int8 => 1,
            Uint16 | Int16 | Fp16 | Bf16 => 2,
            Uint32 | Int32 | Fp32 => 4,
            Uint64 | Int64 | Fp64 => 8,
        }
    }

    pub fn element(self) -> TensorElementType {
        match self {
            Bool => TensorElementType::Bool,
            Uint8 => TensorElementType::Uint8,
            Uint16 => TensorElementType::Uint16,
            Uint32 => TensorElementType::Uint32,
            Uint64 => TensorElementType::Uint64,
            Int8 => TensorElementType::Int8,
            Int16 => TensorElementType::Int16,
            Int32 => TensorElementType::Int32,
            Int64 => TensorElementType::Int64,
            Fp16 => TensorElementType::Float16,
            Fp32 => TensorElementType::Float32,
            Fp64 => TensorElementType::Float64,
            Bf16 => TensorElementType::Bfloat16,
        }
    }

    /// True where values may travel in typed contents.
    pub fn is_typed(self) -> bool {
        !matches!(self, Fp16 | Bf16)
    }

    /// True for what numpy calls a float: BF16 is kept by its bits there.
    pub fn is_float(self) -> bool {
        matches!(self, Fp16 | Fp32 | Fp64)
    }

    /// True when an element is NaN.
    pub fn has_nan(self, data: &[u8]) -> bool {
        match self {
            Fp32 => each::<4>(data).any(|bytes| f32::from_le_bytes(bytes).is_nan()),
            Fp64 => each::<8>(data).any(|bytes| f64::from_le_bytes(bytes).is_nan()),
            Fp16 => each::<2>(data).any(|bytes| f16::from_le_bytes(bytes).is_nan()),
            Bf16 => each::<2>(data).any(|bytes| bf16::from_le_bytes(bytes).is_nan()),
            _ => false,
        }
    }

    /// The elements as doubles; none for BF16, whose values Python does not see either.
    pub fn numbers(self, data: &[u8]) -> Vec<f64> {
        match self {
            Bool | Uint8 => data.iter().map(|byte| f64::from(*byte)).collect(),
            Int8 => data.iter().map(|byte| f64::from(*byte as i8)).collect(),
            Uint16 => as_doubles::<2>(data, |bytes| u16::from_le_bytes(bytes).into()),
            Int16 => as_doubles::<2>(data, |bytes| i16::from_le_bytes(bytes).into()),
            Uint32 => as_doubles::<4>(data, |bytes| u32::from_le_bytes(bytes).into()),
            Int32 => as_doubles::<4>(data, |bytes| i32::from_le_bytes(bytes).into()),
            Uint64 => as_doubles::<8>(data, |bytes| u64::from_le_bytes(bytes) as f64),
            Int64 => as_doubles::<8>(data, |bytes| i64::from_le_bytes(bytes) as f64),
            Fp16 => as_doubles::<2>(data, |bytes| f16::from_le_bytes(bytes).into()),
            Fp32 => as_doubles::<4>(data, |bytes| f32::from_le_bytes(bytes).into()),
            Fp64 => as_doubles::<8>(data, f64::from_le_bytes),
            Bf16 => Vec::new(),
        }
    }

    /// How sure a binary classifier is: the least of max(p, 1 - p), in the datatype's precision.
    pub fn confidence(self, data: &[u8]) -> Option<f64> {
        let least = |found: Vec<f64>| found.into_iter().reduce(f64::min);
        match self {
            Fp16 => least(as_doubles::<2>(data, |bytes| {
                let p = f16::from_le_bytes(bytes);
                f64::from(p).max((f16::ONE - p).into())
            })),
            Fp32 => least(as_doubles::<4>(data, |bytes| {
                let p = f32::from_le_bytes(bytes);
                p.max(1.0 - p).into()
            })),
            Fp64 => least(as_doubles::<8>(data, |bytes| {
                let p = f64::from_le_bytes(bytes);
                p.max(1.0 - p)
            })),
            _ => None,
        }
    }

    /// The bytes of typed contents: of the one field that the datatype travels in.
    pub fn from_contents(self, contents: &InferTensorContents) -> Option<Bytes> {
        let c = contents;
        let filled = [
            c.bool_contents.is_empty(),
            c.int_contents.is_empty(),
            c.int64_contents.is_empty(),
            c.uint_contents.is_empty(),
            c.uint64_contents.is_empty(),
            c.fp32_contents.is_empty(),
            c.fp64_contents.is_empty(),
            c.bytes_contents.is_empty(),
        ];
        if filled.iter().filter(|is_empty| !**is_empty).count() != 1 {
            return None;
        }
        let mut out = BytesMut::new();
        match self {
            Bool => out.extend(c.bool_contents.iter().map(|value| u8::from(*value))),
            Int8 => put(&mut out, &c.int_contents, |v| {
                i8::try_from(v).ok().map(i8::to_le_bytes)
            })?,
            Int16 => put(&mut out, &c.int_contents, |v| {
                i16::try_from(v).ok().map(i16::to_le_bytes)
            })?,
            Int32 => put(&mut out, &c.int_contents, |v| Some(v.to_le_bytes()))?,
            Int64 => put(&mut out, &c.int64_contents, |v| Some(v.to_le_bytes()))?,
            Uint8 => put(&mut out, &c.uint_contents, |v| {
                u8::try_from(v).ok().map(u8::to_le_bytes)
            })?,
            Uint16 => put(&mut out, &c.uint_contents, |v| {
                u16::try_from(v).ok().map(u16::to_le_bytes)
            })?,
            Uint32 => put(&mut out, &c.uint_contents, |v| Some(v.to_le_bytes()))?,
            Uint64 => put(&mut out, &c.uint64_contents, |v| Some(v.to_le_bytes()))?,
            Fp32 => put(&mut out, &c.fp32_contents, |v| Some(v.to_le_bytes()))?,
            Fp64 => put(&mut out, &c.fp64_contents, |v| Some(v.to_le_bytes()))?,
            Fp16 | Bf16 => return None,
        }
        Some(out.freeze())
    }

    /// Typed contents of bytes; None for what travels raw only.
    pub fn to_contents(self, data: &[u8]) -> Option<InferTensorContents> {
        let mut c = InferTensorContents::default();
        match self {
            Bool => c.bool_contents = data.iter().map(|byte| *byte != 0).collect(),
            Int8 => c.int_contents = data.iter().map(|byte| i32::from(*byte as i8)).collect(),
            Int16 => {
                c.int_contents = each::<2>(data)
                    .map(|bytes| i16::from_le_bytes(bytes).into())
                    .collect()
            }
            Int32 => c.int_contents = each::<4>(data).map(i32::from_le_bytes).collect(),
            Int64 => c.int64_contents = each::<8>(data).map(i64::from_le_bytes).collect(),
            Uint8 => c.uint_contents = data.iter().map(|byte| u32::from(*byte)).collect(),
            Uint16 => {
                c.uint_contents = each::<2>(data)
                    .map(|bytes| u16::from_le_bytes(bytes).into())
                    .collect()
            }
            Uint32 => c.uint_contents = each::<4>(data).map(u32::from_le_bytes).collect(),
            Uint64 => c.uint64_contents = each::<8>(data).map(u64::from_le_bytes).collect(),
            Fp32 => c.fp32_contents = each::<4>(data).map(f32::from_le_bytes).collect(),
            Fp64 => c.fp64_contents = each::<8>(data).map(f64::from_le_bytes).collect(),
            Fp16 | Bf16 => return None,
        }
        Some(c)
    }
}

/// The number of elements of a request's tensor; None if the sizes cannot be its shape.
pub fn elements_of(shape: &[i64]) -> Option<usize> {
    if !(1..=MAX_RANK).contains(&shape.len()) || shape.iter().any(|size| *size < 1) {
        return None;
    }
    shape
        .iter()
        .try_fold(1i64, |product, size| {
            product
                .checked_mul(*size)
                .filter(|product| *product <= MAX_ELEMENTS)
        })
        .map(|elements| elements as usize)
}

fn each<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    data.chunks_exact(N).map(|chunk| {
        let mut bytes = [0; N];
        bytes.copy_from_slice(chunk);
        bytes
    })
}

fn as_doubles<const N: usize>(data: &[u8], of: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    each::<N>(data).map(of).collect()
}

fn put<V: Copy, const N: usize>(
    out: &mut BytesMut,
    values: &[V],
    of: impl Fn(V) -> Option<[u8; N]>,
) -> Option<()> {
    out.reserve(values.len() * N);
    for value in values {
        out.put_slice(&of(*value)?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_no_tensor_has_are_refused() {
        assert_eq!(elements_of(&[2, 3]), Some(6));
        assert_eq!(elements_of(&[]), None);
        assert_eq!(elements_of(&[0]), None);
        assert_eq!(elements_of(&[-1, 2]), None);
        assert_eq!(elements_of(&[1 << 40, 1 << 40]), None);
        assert_eq!(elements_of(&[1; 1000]), None);
        assert_eq!(elements_of(&[1 << 31]), None);
    }

    #[test]
    fn each_datatype_is_at_its_own_place() {
        for (datatype, name) in NAMES {
            assert_eq!(Datatype::of(name), Some(datatype));
            assert_eq!(datatype.name(), name);
        }
        assert_eq!(Datatype::of("BYTES"), None);
    }

    #[test]
    fn typed_contents_come_back_as_they_went() {
        let rows: [(Datatype, Vec<u8>); 11] = [
            (Bool, vec![1, 0]),
            (Int8, vec![0x80, 0x7f]),
            (Int16, vec![0, 0x80, 1, 0]),
            (Int32, vec![0, 0, 0, 0x80]),
            (Int64, vec![0xff; 8]),
            (Uint8, vec![255, 0]),
            (Uint16, vec![255, 255]),
            (Uint32, vec![255; 4]),
            (Uint64, vec![255; 8]),
            (Fp32, 1.5f32.to_le_bytes().to_vec()),
            (Fp64, 1e300f64.to_le_bytes().to_vec()),
        ];
        for (datatype, data) in rows {
            let contents = datatype.to_contents(&data).unwrap();
            assert_eq!(
                datatype.from_contents(&contents).unwrap(),
                data,
                "{datatype:?}"
            );
        }
        assert!(Fp16.to_contents(&[0, 0]).is_none());
    }

    #[test]
    fn a_value_that_does_not_fit_is_refused() {
        let contents = InferTensorContents {
            int_contents: vec![128],
            ..Default::default()
        };
        assert!(Int8.from_contents(&contents).is_none());
        assert!(Int16.from_contents(&contents).is_some());
        assert!(
            Fp32.from_contents(&InferTensorContents::default())
                .is_none(),
            "nothing came"
        );
        let two = InferTensorContents {
            fp32_contents: vec![1.0],
            ..contents
        };
        assert!(Int32.from_contents(&two).is_none(), "two fields are filled");
    }

    #[test]
    fn nan_is_found_in_every_float() {
        assert!(Fp32.has_nan(&[f32::NAN.to_le_bytes(), 1f32.to_le_bytes()].concat()));
        assert!(Fp64.has_nan(&f64::NAN.to_le_bytes()));
        assert!(Fp16.has_nan(&f16::NAN.to_le_bytes()));
        assert!(Bf16.has_nan(&bf16::NAN.to_le_bytes()));
        assert!(!Fp32.has_nan(&f32::INFINITY.to_le_bytes()));
        assert!(!Int32.has_nan(&[255; 4]));
    }

    #[test]
    fn confidence_is_of_the_least_sure_row() {
        let data = [0.9f64.to_le_bytes(), 0.3f64.to_le_bytes()].concat();
        assert_eq!(Fp64.confidence(&data), Some(0.7));
        assert_eq!(Int8.confidence(&[1]), None);
    }
}
