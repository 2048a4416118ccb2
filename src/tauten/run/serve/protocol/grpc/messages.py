"""The messages and methods of the three services: inference, health checks and reflection.

Names and numbers are those of the public protocols: the Open Inference Protocol V2 with the extensions that clients of
V2 servers use (configuration, statistics, repository, streams), ``grpc.health.v1`` and ``grpc.reflection``.
"""

from __future__ import annotations

from typing import Final

from tauten.run.serve.protocol.grpc.schema import Messages, Schema

_TENSOR = """
    string name = 1
    string datatype = 2
    repeated int64 shape = 3
    map<string, InferParameter> parameters = 4
    InferTensorContents contents = 5
"""
_NAME_AND_VERSION = """
    string name = 1
    string version = 2
"""

INFERENCE: Final = Schema(
    file="tauten/inference.proto",
    package="inference",
    messages={
        "ServerLiveRequest": "",
        "ServerLiveResponse": "bool live = 1",
        "ServerReadyRequest": "",
        "ServerReadyResponse": "bool ready = 1",
        "ModelReadyRequest": _NAME_AND_VERSION,
        "ModelReadyResponse": "bool ready = 1",
        "ServerMetadataRequest": "",
        "ServerMetadataResponse": """
            string name = 1
            string version = 2
            repeated string extensions = 3
        """,
        "ModelMetadataRequest": _NAME_AND_VERSION,
        "ModelMetadataResponse": """
            string name = 1
            repeated string versions = 2
            string platform = 3
            repeated ModelMetadataResponse.TensorMetadata inputs = 4
            repeated ModelMetadataResponse.TensorMetadata outputs = 5
        """,
        "ModelMetadataResponse.TensorMetadata": """
            string name = 1
            string datatype = 2
            repeated int64 shape = 3
        """,
        "InferParameter": """
            bool bool_param = 1 in parameter_choice
            int64 int64_param = 2 in parameter_choice
            string string_param = 3 in parameter_choice
            double double_param = 4 in parameter_choice
            uint64 uint64_param = 5 in parameter_choice
        """,
        "InferTensorContents": """
            repeated bool bool_contents = 1
            repeated int32 int_contents = 2
            repeated int64 int64_contents = 3
            repeated uint32 uint_contents = 4
            repeated uint64 uint64_contents = 5
            repeated float fp32_contents = 6
            repeated double fp64_contents = 7
            repeated bytes bytes_contents = 8
        """,
        "ModelInferRequest": """
            string model_name = 1
            string model_version = 2
            string id = 3
            map<string, InferParameter> parameters = 4
            repeated ModelInferRequest.InferInputTensor inputs = 5
            repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6
            repeated bytes raw_input_contents = 7
        """,
        "ModelInferRequest.InferInputTensor": _TENSOR,
        "ModelInferRequest.InferRequestedOutputTensor": """
            string name = 1
            map<string, InferParameter> parameters = 2
        """,
        "ModelInferResponse": """
            string model_name = 1
            string model_version = 2
            string id = 3
            map<string, InferParameter> parameters = 4
            repeated ModelInferResponse.InferOutputTensor outputs = 5
            repeated bytes raw_output_contents = 6
        """,
        "ModelInferResponse.InferOutputTensor": _TENSOR,
        "ModelStreamInferResponse": """
            string error_message = 1
            ModelInferResponse infer_response = 2
        """,
        "ModelConfigRequest": _NAME_AND_VERSION,
        "ModelConfigResponse": "ModelConfig config = 1",
        "ModelConfig": """
            string name = 1
            string platform = 2
            string backend = 17
            ModelVersionPolicy version_policy = 3
            int32 max_batch_size = 4
            repeated ModelInput input = 5
            repeated ModelOutput output = 6
            repeated ModelInstanceGroup instance_group = 7
            ModelDynamicBatching dynamic_batching = 11 in scheduling_choice
            ModelTransactionPolicy model_transaction_policy = 19
            ModelResponseCache response_cache = 24
        """,
        "ModelVersionPolicy": """
            ModelVersionPolicy.Latest latest = 1 in policy_choice
            ModelVersionPolicy.All all = 2 in policy_choice
            ModelVersionPolicy.Specific specific = 3 in policy_choice
        """,
        "ModelVersionPolicy.Latest": "uint32 num_versions = 1",
        "ModelVersionPolicy.All": "",
        "ModelVersionPolicy.Specific": "repeated int64 versions = 1",
        "ModelInput": """
            string name = 1
            DataType data_type = 2
            repeated int64 dims = 4
            bool allow_ragged_batch = 7
        """,
        "ModelOutput": """
            string name = 1
            DataType data_type = 2
            repeated int64 dims = 3
        """,
        "ModelInstanceGroup": """
            string name = 1
            ModelInstanceGroup.Kind kind = 4
            int32 count = 2
        """,
        "ModelDynamicBatching": """
            repeated int32 preferred_batch_size = 1
            uint64 max_queue_delay_microseconds = 2
        """,
        "ModelTransactionPolicy": "bool decoupled = 1",
        "ModelResponseCache": "bool enable = 1",
        "ModelStatisticsRequest": _NAME_AND_VERSION,
        "ModelStatisticsResponse": "repeated ModelStatistics model_stats = 1",
        "StatisticDuration": """
            uint64 count = 1
            uint64 ns = 2
        """,
        "InferStatistics": """
            StatisticDuration success = 1
            StatisticDuration fail = 2
            StatisticDuration queue = 3
            StatisticDuration compute_input = 4
            StatisticDuration compute_infer = 5
            StatisticDuration compute_output = 6
            StatisticDuration cache_hit = 7
            StatisticDuration cache_miss = 8
        """,
        "InferBatchStatistics": """
            uint64 batch_size = 1
            StatisticDuration compute_input = 2
            StatisticDuration compute_infer = 3
            StatisticDuration compute_output = 4
        """,
        "ModelStatistics": """
            string name = 1
            string version = 2
            uint64 last_inference = 3
            uint64 inference_count = 4
            uint64 execution_count = 5
            InferStatistics inference_stats = 6
            repeated InferBatchStatistics batch_stats = 7
        """,
        "ModelRepositoryParameter": """
            bool bool_param = 1 in parameter_choice
            int64 int64_param = 2 in parameter_choice
            string string_param = 3 in parameter_choice
            bytes bytes_param = 4 in parameter_choice
        """,
        "RepositoryIndexRequest": """
            string repository_name = 1
            bool ready = 2
        """,
        "RepositoryIndexResponse": "repeated RepositoryIndexResponse.ModelIndex models = 1",
        "RepositoryIndexResponse.ModelIndex": """
            string name = 1
            string version = 2
            string state = 3
            string reason = 4
        """,
        "RepositoryModelLoadRequest": """
            string repository_name = 1
            string model_name = 2
            map<string, ModelRepositoryParameter> parameters = 3
        """,
        "RepositoryModelLoadResponse": "",
        "RepositoryModelUnloadRequest": """
            string repository_name = 1
            string model_name = 2
            map<string, ModelRepositoryParameter> parameters = 3
        """,
        "RepositoryModelUnloadResponse": "",
    },
    enums={
        "DataType": "TYPE_INVALID TYPE_BOOL TYPE_UINT8 TYPE_UINT16 TYPE_UINT32 TYPE_UINT64 TYPE_INT8 TYPE_INT16"
        " TYPE_INT32 TYPE_INT64 TYPE_FP16 TYPE_FP32 TYPE_FP64 TYPE_STRING TYPE_BF16",
        "ModelInstanceGroup.Kind": "KIND_AUTO KIND_GPU KIND_CPU KIND_MODEL",
    },
    service="GRPCInferenceService",
    methods={
        "ServerLive": "ServerLiveRequest -> ServerLiveResponse",
        "ServerReady": "ServerReadyRequest -> ServerReadyResponse",
        "ServerMetadata": "ServerMetadataRequest -> ServerMetadataResponse",
        "ModelReady": "ModelReadyRequest -> ModelReadyResponse",
        "ModelMetadata": "ModelMetadataRequest -> ModelMetadataResponse",
        "ModelInfer": "ModelInferRequest -> ModelInferResponse",
        "ModelStreamInfer": "stream ModelInferRequest -> stream ModelStreamInferResponse",
        "ModelConfig": "ModelConfigRequest -> ModelConfigResponse",
        "ModelStatistics": "ModelStatisticsRequest -> ModelStatisticsResponse",
        "RepositoryIndex": "RepositoryIndexRequest -> RepositoryIndexResponse",
        "RepositoryModelLoad": "RepositoryModelLoadRequest -> RepositoryModelLoadResponse",
        "RepositoryModelUnload": "RepositoryModelUnloadRequest -> RepositoryModelUnloadResponse",
    },
)

HEALTH: Final = Schema(
    file="tauten/health.proto",
    package="grpc.health.v1",
    messages={
        "HealthCheckRequest": "string service = 1",
        "HealthCheckResponse": "HealthCheckResponse.ServingStatus status = 1",
    },
    enums={"HealthCheckResponse.ServingStatus": "UNKNOWN SERVING NOT_SERVING SERVICE_UNKNOWN"},
    service="Health",
    methods={
        "Check": "HealthCheckRequest -> HealthCheckResponse",
        "Watch": "HealthCheckRequest -> stream HealthCheckResponse",
    },
)


def _reflection(version: str) -> Schema:
    """``grpc.reflection`` in one of its two versions, which differ in their name alone."""
    return Schema(
        file=f"tauten/reflection_{version}.proto",
        package=f"grpc.reflection.{version}",
        messages={
            "ServerReflectionRequest": """
                string host = 1
                string file_by_filename = 3 in message_request
                string file_containing_symbol = 4 in message_request
                ExtensionRequest file_containing_extension = 5 in message_request
                string all_extension_numbers_of_type = 6 in message_request
                string list_services = 7 in message_request
            """,
            "ExtensionRequest": """
                string containing_type = 1
                int32 extension_number = 2
            """,
            "ServerReflectionResponse": """
                string valid_host = 1
                ServerReflectionRequest original_request = 2
                FileDescriptorResponse file_descriptor_response = 4 in message_response
                ExtensionNumberResponse all_extension_numbers_response = 5 in message_response
                ListServiceResponse list_services_response = 6 in message_response
                ErrorResponse error_response = 7 in message_response
            """,
            "FileDescriptorResponse": "repeated bytes file_descriptor_proto = 1",
            "ExtensionNumberResponse": """
                string base_type_name = 1
                repeated int32 extension_number = 2
            """,
            "ListServiceResponse": "repeated ServiceResponse service = 1",
            "ServiceResponse": "string name = 1",
            "ErrorResponse": """
                int32 error_code = 1
                string error_message = 2
            """,
        },
        service="ServerReflection",
        methods={"ServerReflectionInfo": "stream ServerReflectionRequest -> stream ServerReflectionResponse"},
    )


REFLECTIONS: Final = (_reflection("v1"), _reflection("v1alpha"))
MESSAGES: Final = Messages(INFERENCE, HEALTH, *REFLECTIONS)
