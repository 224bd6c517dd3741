// The calls of csrc/cuda/bindings.cpp to the CUDA runtime, emulated: one device with the sizes of an H100.
#pragma once

#define CUDART_VERSION 13000

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};

inline int& emulated_device() {
  static int device = 0;
  return device;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = emulated_device(), cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return emulated_device() = device, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  constexpr int kValues[] = {132, 227 << 10, 9, 0};
  *value = kValues[attribute];
  return cudaSuccess;
}
inline const char* cudaGetErrorName(cudaError_t) { return "none"; }
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
