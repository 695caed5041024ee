//! Names of the backend API with their numbers, which are the same in all of cuDNN 9.

/// What a descriptor describes (`cudnnBackendDescriptorType_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind(pub(crate) u32, pub(crate) &'static str);

/// A property of a descriptor (`cudnnBackendAttributeName_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attribute(pub(crate) u32, pub(crate) &'static str);

/// The type of an attribute's elements (`cudnnBackendAttributeType_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Type(pub(crate) u32);

macro_rules! numbers {
    ($of:ident: $($name:ident = $number:literal,)*) => {
        #[allow(dead_code, reason = "the vocabulary, whole for each descriptor")]
        impl $of {
            $(pub(crate) const $name: Self = Self($number, stringify!($name));)*
        }
    };
}

numbers! { Kind:
    POINTWISE = 0,
    CONVOLUTION = 1,
    ENGINE = 2,
    ENGINECFG = 3,
    ENGINEHEUR = 4,
    EXECUTION_PLAN = 5,
    OPERATION_CONVOLUTION_FORWARD = 10,
    OPERATION_POINTWISE = 13,
    OPERATIONGRAPH = 15,
    VARIANT_PACK = 16,
    TENSOR = 17,
    MATMUL = 18,
    OPERATION_MATMUL = 19,
    REDUCTION = 21,
    OPERATION_REDUCTION = 22,
    DEVICEPROP = 38,
    OPERATION_SDPA_FWD = 41,
}

numbers! { Attribute:
    POINTWISE_MODE = 0,
    POINTWISE_MATH_PREC = 1,
    POINTWISE_SWISH_BETA = 8,
    POINTWISE_AXIS = 9,
    CONVOLUTION_COMP_TYPE = 100,
    CONVOLUTION_CONV_MODE = 101,
    CONVOLUTION_DILATIONS = 102,
    CONVOLUTION_FILTER_STRIDES = 103,
    CONVOLUTION_POST_PADDINGS = 104,
    CONVOLUTION_PRE_PADDINGS = 105,
    CONVOLUTION_SPATIAL_DIMS = 106,
    ENGINEHEUR_MODE = 200,
    ENGINEHEUR_OPERATION_GRAPH = 201,
    ENGINEHEUR_RESULTS = 202,
    ENGINEHEUR_DEVICEPROP = 204,
    ENGINECFG_ENGINE = 300,
    EXECUTION_PLAN_HANDLE = 400,
    EXECUTION_PLAN_ENGINE_CONFIG = 401,
    EXECUTION_PLAN_WORKSPACE_SIZE = 402,
    EXECUTION_PLAN_JSON_REPRESENTATION = 405,
    EXECUTION_PLAN_DEVICEPROP = 407,
    OPERATION_CONVOLUTION_FORWARD_ALPHA = 700,
    OPERATION_CONVOLUTION_FORWARD_BETA = 701,
    OPERATION_CONVOLUTION_FORWARD_CONV_DESC = 702,
    OPERATION_CONVOLUTION_FORWARD_W = 703,
    OPERATION_CONVOLUTION_FORWARD_X = 704,
    OPERATION_CONVOLUTION_FORWARD_Y = 705,
    OPERATION_POINTWISE_PW_DESCRIPTOR = 750,
    OPERATION_POINTWISE_XDESC = 751,
    OPERATION_POINTWISE_BDESC = 752,
    OPERATION_POINTWISE_YDESC = 753,
    OPERATION_POINTWISE_ALPHA1 = 754,
    OPERATION_POINTWISE_ALPHA2 = 755,
    OPERATION_POINTWISE_TDESC = 758,
    OPERATIONGRAPH_HANDLE = 800,
    OPERATIONGRAPH_OPS = 801,
    TENSOR_BYTE_ALIGNMENT = 900,
    TENSOR_DATA_TYPE = 901,
    TENSOR_DIMENSIONS = 902,
    TENSOR_STRIDES = 903,
    TENSOR_UNIQUE_ID = 906,
    TENSOR_IS_VIRTUAL = 907,
    TENSOR_IS_BY_VALUE = 908,
    VARIANT_PACK_UNIQUE_IDS = 1000,
    VARIANT_PACK_DATA_POINTERS = 1001,
    VARIANT_PACK_WORKSPACE = 1003,
    ENGINE_GLOBAL_INDEX = 1301,
    ENGINE_NUMERICAL_NOTE = 1303,
    ENGINE_BEHAVIOR_NOTE = 1305,
    MATMUL_COMP_TYPE = 1500,
    OPERATION_MATMUL_ADESC = 1520,
    OPERATION_MATMUL_BDESC = 1521,
    OPERATION_MATMUL_CDESC = 1522,
    OPERATION_MATMUL_DESC = 1523,
    REDUCTION_OPERATOR = 1600,
    REDUCTION_COMP_TYPE = 1601,
    OPERATION_REDUCTION_XDESC = 1610,
    OPERATION_REDUCTION_YDESC = 1611,
    OPERATION_REDUCTION_DESC = 1612,
    DEVICEPROP_DEVICE_ID = 2700,
    DEVICEPROP_HANDLE = 2701,
    DEVICEPROP_JSON_REPRESENTATION = 2702,
    OPERATION_SDPA_FWD_QDESC = 2800,
    OPERATION_SDPA_FWD_KDESC = 2801,
    OPERATION_SDPA_FWD_VDESC = 2802,
    OPERATION_SDPA_FWD_ODESC = 2803,
    OPERATION_SDPA_FWD_STATSDESC = 2804,
    OPERATION_SDPA_FWD_SCALEDESC = 2805,
    OPERATION_SDPA_FWD_SEQ_LEN_QDESC = 2809,
    OPERATION_SDPA_FWD_SEQ_LEN_KVDESC = 2810,
}

#[allow(dead_code, reason = "the vocabulary")]
impl Type {
    pub(crate) const HANDLE: Self = Self(0);
    pub(crate) const DATA_TYPE: Self = Self(1);
    pub(crate) const BOOLEAN: Self = Self(2);
    pub(crate) const INT64: Self = Self(3);
    pub(crate) const FLOAT: Self = Self(4);
    pub(crate) const DOUBLE: Self = Self(5);
    pub(crate) const VOID_PTR: Self = Self(6);
    pub(crate) const CONVOLUTION_MODE: Self = Self(7);
    pub(crate) const HEUR_MODE: Self = Self(8);
    pub(crate) const NUMERICAL_NOTE: Self = Self(11);
    pub(crate) const POINTWISE_MODE: Self = Self(14);
    pub(crate) const BACKEND_DESCRIPTOR: Self = Self(15);
    pub(crate) const REDUCTION_OPERATOR_TYPE: Self = Self(18);
    pub(crate) const BEHAVIOR_NOTE: Self = Self(19);
    pub(crate) const INT32: Self = Self(23);
    pub(crate) const CHAR: Self = Self(24);
}

/// One of the API's enums as an attribute: the type of the attribute and the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) Type, pub(crate) i32);

#[allow(dead_code, reason = "the vocabulary")]
impl Code {
    pub(crate) const FLOAT: Self = Self(Type::DATA_TYPE, 0);
    pub(crate) const HALF: Self = Self(Type::DATA_TYPE, 2);
    pub(crate) const INT32: Self = Self(Type::DATA_TYPE, 4);
    pub(crate) const BFLOAT16: Self = Self(Type::DATA_TYPE, 9);
    pub(crate) const INT64: Self = Self(Type::DATA_TYPE, 10);
    pub(crate) const BOOLEAN: Self = Self(Type::DATA_TYPE, 11);

    pub(crate) const CROSS_CORRELATION: Self = Self(Type::CONVOLUTION_MODE, 1);

    pub(crate) const HEURISTICS_FALLBACK: Self = Self(Type::HEUR_MODE, 2);
    pub(crate) const HEURISTICS_A: Self = Self(Type::HEUR_MODE, 3);

    pub(crate) const ADD: Self = Self(Type::POINTWISE_MODE, 0);
    pub(crate) const MUL: Self = Self(Type::POINTWISE_MODE, 1);
    pub(crate) const MAX: Self = Self(Type::POINTWISE_MODE, 3);
    pub(crate) const DIV: Self = Self(Type::POINTWISE_MODE, 6);
    pub(crate) const SUB: Self = Self(Type::POINTWISE_MODE, 9);
    pub(crate) const EXP: Self = Self(Type::POINTWISE_MODE, 13);
    pub(crate) const LOG: Self = Self(Type::POINTWISE_MODE, 15);
    pub(crate) const IDENTITY: Self = Self(Type::POINTWISE_MODE, 21);
    pub(crate) const GELU_FWD: Self = Self(Type::POINTWISE_MODE, 104);
    /// `x · sigmoid(βx)`, SiLU with β of 1.
    pub(crate) const SWISH_FWD: Self = Self(Type::POINTWISE_MODE, 106);
    pub(crate) const CMP_LT: Self = Self(Type::POINTWISE_MODE, 304);
    pub(crate) const GEN_INDEX: Self = Self(Type::POINTWISE_MODE, 501);
    pub(crate) const BINARY_SELECT: Self = Self(Type::POINTWISE_MODE, 601);

    pub(crate) const REDUCE_ADD: Self = Self(Type::REDUCTION_OPERATOR_TYPE, 0);
    pub(crate) const REDUCE_MAX: Self = Self(Type::REDUCTION_OPERATOR_TYPE, 3);
}

/// Notes of engines (`cudnnBackendNumericalNote_t`).
pub(crate) mod note {
    /// Sums may come out in another order each time.
    pub(crate) const NONDETERMINISTIC: i32 = 4;
    /// Sums in less than `f32`.
    pub(crate) const REDUCED_PRECISION_REDUCTION: i32 = 2;
}
