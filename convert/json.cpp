#include "convert/json.h"

#include <limits>
#include <unordered_set>
#include <vector>

#include "convert/error.h"

namespace mamba_edge::convert {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxQuotedBytes = 200;  // of a parser's message, which may repeat what it read

// Copies `text`, with the bare words that only Python writes turned into objects.
std::string without_python_floats(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\' && i + 1 < text.size()) out += text[i++];
      if (c == '"') in_string = false;
      out += text[i++];
      continue;
    }
    bool replaced = false;
    for (const std::string_view word : {"NaN", "Infinity", "-Infinity"}) {
      if (text.compare(i, word.size(), word) != 0) continue;
      out.append("{\"__float__\":\"").append(word).append("\"}");
      i += word.size();
      replaced = true;
      break;
    }
    if (replaced) continue;
    if (c == '"') in_string = true;
    out += c;
    ++i;
  }
  return out;
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& source) {
  std::vector<std::unordered_set<std::string>> keys;  // one set per open object
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    using Event = nlohmann::json::parse_event_t;
    if (depth > kMaxDepth) {
      throw Error(source + ": JSON is nested deeper than " + std::to_string(kMaxDepth));
    }
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second) {
      throw Error(source + ": key \"" + value.get<std::string>() + "\" appears twice");
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), watch);
  } catch (const nlohmann::json::exception& error) {
    throw Error(source +
                ": is not valid JSON: " + std::string(error.what()).substr(0, kMaxQuotedBytes));
  }
}

nlohmann::json parse_python_json(std::string_view text, const std::string& source) {
  return parse_json(without_python_floats(text), source);
}

bool json_number(const nlohmann::json& json, double* value) {
  if (json.is_number()) {
    *value = json.get<double>();
    return true;
  }
  if (!json.is_object() || json.size() != 1 || !json.contains("__float__")) return false;
  const nlohmann::json& word = json["__float__"];
  if (word == "NaN") {
    *value = std::numeric_limits<double>::quiet_NaN();
  } else if (word == "Infinity") {
    *value = std::numeric_limits<double>::infinity();
  } else if (word == "-Infinity") {
    *value = -std::numeric_limits<double>::infinity();
  } else {
    return false;
  }
  return true;
}

}  // namespace mamba_edge::convert
