// KL against file size, as a picture: plain SVG with its own paper, so that it looks the same on light
// and dark pages, and with nothing that has to be fetched.
#include <algorithm>
#include <cmath>

#include "tools/eval.h"

namespace mamba_edge::tools {
namespace {

constexpr double kWidth = 880, kHeight = 560;
constexpr double kLeft = 92, kRight = 856, kTop = 112, kBottom = 484;  // of the field of points
constexpr double kMargin = 24, kMark = 5, kLabelSize = 12.5;
constexpr const char* kPaper = "#ffffff";
constexpr const char* kInk = "#1f2328";
constexpr const char* kSoft = "#59636e";
constexpr const char* kLine = "#d8dee4";
constexpr const char* kFaint = "#eef1f4";
constexpr const char* kOurs = "#1f6feb";
constexpr const char* kOthers = "#9aa4af";

// As the text of an element. What XML cannot hold becomes a question mark.
std::string escape(const std::string& text) {
  const bool utf8 = is_utf8(text);
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '&':
        result += "&amp;";
        break;
      default: {
        const auto byte = static_cast<unsigned char>(c);
        result += byte < 0x20 || byte == 0x7F || (byte >= 0x80 && !utf8) ? '?' : c;
      }
    }
  }
  return result;
}

std::string number(double value) {  // a coordinate
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string words(double x, double y, const std::string& text, double size, const char* color,
                  const char* anchor = "start", bool bold = false) {
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" font-size=\"" + number(size) +
         "\" fill=\"" + color + "\" text-anchor=\"" + anchor + "\"" +
         (bold ? " font-weight=\"600\"" : "") + ">" + escape(text) + "</text>\n";
}

std::string line(double x1, double y1, double x2, double y2, const char* color) {
  return "<path d=\"M" + number(x1) + " " + number(y1) + "L" + number(x2) + " " + number(y2) +
         "\" stroke=\"" + color + "\" fill=\"none\"/>\n";
}

std::string mark(double x, double y, bool other) {
  if (!other) {
    return "<circle cx=\"" + number(x) + "\" cy=\"" + number(y) + "\" r=\"" + number(kMark) +
           "\" fill=\"" + kOurs + "\"/>\n";
  }
  return "<rect x=\"" + number(x - kMark) + "\" y=\"" + number(y - kMark) + "\" width=\"" +
         number(2 * kMark) + "\" height=\"" + number(2 * kMark) + "\" fill=\"" + kOthers + "\"/>\n";
}

// A power of ten as people write it: 0.001.
std::string power_of_ten(int exponent) {
  char text[32];
  if (exponent < -6 || exponent > 6) {
    std::snprintf(text, sizeof text, "1e%d", exponent);
  } else {
    std::snprintf(text, sizeof text, "%.*f", std::max(0, -exponent), std::pow(10, exponent));
  }
  return text;
}

struct Box {
  double x1, y1, x2, y2;
  bool overlaps(const Box& o) const { return x1 < o.x2 && o.x1 < x2 && y1 < o.y2 && o.y1 < y2; }
};

// Characters take about this part of their size in the fonts asked for, the wider ones of them.
double text_width(const std::string& text, double size) {
  const auto characters = std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  });
  return 0.62 * size * static_cast<double>(characters);
}

// The values 1, 2 or 5 times a power of ten apart that give at most `most` steps over `range`.
double nice_step(double range, double most) {
  const double power = std::pow(10, std::floor(std::log10(range / most)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (range / (factor * power) <= most) return factor * power;
  }
  return 10 * power;
}

class Plot {
 public:
  explicit Plot(const std::vector<Point>& points) {
    for (const Point& point : points) (point.kl > 0 ? points_ : zeros_).push_back(point);
    double least = 1e-4, most = 1, smallest = 0, largest = 1e6;
    if (!points_.empty()) {
      const auto by_kl = std::minmax_element(
          points_.begin(), points_.end(), [](const auto& a, const auto& b) { return a.kl < b.kl; });
      const auto by_bytes =
          std::minmax_element(points_.begin(), points_.end(),
                              [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
      least = by_kl.first->kl;
      most = by_kl.second->kl;
      smallest = static_cast<double>(by_bytes.first->bytes);
      largest = static_cast<double>(by_bytes.second->bytes);
    }
    low_ = static_cast<int>(std::floor(std::log10(least)));
    high_ = std::max(low_ + 1, static_cast<int>(std::ceil(std::log10(most))));
    const double room = largest > smallest ? 0.1 * (largest - smallest) : 0.1 * largest;
    from_ = std::max(0.0, smallest - room);
    to_ = largest + room;
  }

  std::string axes() const {
    std::string out;
    const double step = nice_step(to_ - from_, 8);
    for (double bytes = std::ceil(from_ / step) * step; bytes <= to_; bytes += step) {
      out += line(x(bytes), kTop, x(bytes), kBottom, kFaint);
      out += words(x(bytes), kBottom + 20, format_bytes(static_cast<uint64_t>(std::lround(bytes))),
                   11.5, kSoft, "middle");
    }
    for (int power = low_; power <= high_; ++power) {
      for (int digit = 2; digit <= 9 && power < high_; ++digit) {
        const double minor = y(digit * std::pow(10, power));
        out += line(kLeft, minor, kRight, minor, kFaint);
      }
      const double at = y(std::pow(10, power));
      out += line(kLeft, at, kRight, at, kLine);
      out += words(kLeft - 8, at + 4, power_of_ten(power), 11.5, kSoft, "end");
    }
    out += words((kLeft + kRight) / 2, kBottom + 44, "file size", 12.5, kSoft, "middle");
    out += "<text transform=\"translate(" + number(kMargin + 6) + " " +
           number((kTop + kBottom) / 2) + ") rotate(-90)\" font-size=\"12.5\" fill=\"" + kSoft +
           "\" text-anchor=\"middle\">KL divergence</text>\n";
    return out;
  }

  std::string marks() const {
    std::string out;
    for (const Point& point : points_) out += mark(x(point), y(point.kl), point.other);
    return out;
  }

  // Each name where it covers neither a mark nor another name, as near to its mark as can be.
  std::string names() const {
    std::vector<Box> taken;
    for (const Point& point : points_) {
      const double px = x(point), py = y(point.kl), r = kMark + 1;
      taken.push_back({px - r, py - r, px + r, py + r});
    }
    std::string out;
    for (const Point& point : points_) {
      const double px = x(point), py = y(point.kl);
      const Box box = place(point, taken);
      taken.push_back(box);
      const bool near = std::abs((box.y1 + box.y2) / 2 - py) < 20;
      if (!near) {
        const double end = px < box.x1 ? box.x1 - 2 : px > box.x2 ? box.x2 + 2 : px;
        out += line(px, py, end, (box.y1 + box.y2) / 2, kSoft);
      }
      out += words(box.x1, box.y2 - 4, point.name, kLabelSize, point.other ? kSoft : kInk);
    }
    return out;
  }

  // What a logarithmic axis has no place for.
  std::string without_place() const {
    if (zeros_.empty()) return {};
    std::string text = "KL 0, which this axis has no place for: ";
    for (const Point& point : zeros_) text += (&point == &zeros_[0] ? "" : ", ") + point.name;
    return words(kLeft, kBottom + 66, text, 11.5, kSoft);
  }

 private:
  double x(double bytes) const {
    return kLeft + (kRight - kLeft) * (bytes - from_) / (to_ - from_);
  }
  double x(const Point& point) const { return x(static_cast<double>(point.bytes)); }
  double y(double kl) const {
    return kBottom - (kBottom - kTop) * (std::log10(kl) - low_) / (high_ - low_);
  }

  Box place(const Point& point, const std::vector<Box>& taken) const {
    const double px = x(point), py = y(point.kl), width = text_width(point.name, kLabelSize);
    const double height = kLabelSize + 4, gap = kMark + 4;
    const auto at = [&](double left, double middle) {
      return Box{left, middle - height / 2, left + width, middle + height / 2};
    };
    std::vector<Box> places = {at(px + gap, py), at(px - gap - width, py),
                               at(px - width / 2, py - gap - height / 2),
                               at(px - width / 2, py + gap + height / 2)};
    for (double away = height; away < kBottom - kTop; away += height) {
      for (const double middle : {py - away, py + away}) {
        places.push_back(at(px + 2 * gap, middle));
        places.push_back(at(px - 2 * gap - width, middle));
      }
    }
    const Box field = {kLeft, kTop - 8, kRight, kBottom};
    for (const Box& box : places) {
      const bool inside =
          box.x1 >= field.x1 && box.x2 <= field.x2 && box.y1 >= field.y1 && box.y2 <= field.y2;
      const bool free =
          std::none_of(taken.begin(), taken.end(), [&](const Box& o) { return box.overlaps(o); });
      if (inside && free) return box;
    }
    return places[0];
  }

  std::vector<Point> points_, zeros_;
  int low_ = 0, high_ = 1;    // powers of ten at the ends of the axis
  double from_ = 0, to_ = 1;  // bytes at the ends of the axis
};

}  // namespace

std::string plot_svg(const std::vector<Point>& points, const PlotWords& plot) {
  const Plot field(points);
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + number(kWidth) +
                    " " + number(kHeight) + "\" width=\"" + number(kWidth) + "\" height=\"" +
                    number(kHeight) +
                    "\" role=\"img\" font-family=\"'DejaVu Sans', Verdana, Arial, "
                    "sans-serif\">\n<title>" +
                    escape(plot.title) + "</title>\n";
  out += "<rect x=\"0\" y=\"0\" width=\"" + number(kWidth) + "\" height=\"" + number(kHeight) +
         "\" fill=\"" + kPaper + "\"/>\n";
  out += words(kMargin, kMargin + 14, plot.title, 17, kInk, "start", true);
  out += words(kMargin, kMargin + 38, plot.subtitle, 12.5, kSoft);
  const double legend = kMargin + 62;
  out += mark(kMargin + kMark, legend - 4, false) +
         words(kMargin + 20, legend, "mamba-edge", 12.5, kSoft);
  if (!plot.others.empty()) {
    out += mark(kMargin + 128 + kMark, legend - 4, true) +
           words(kMargin + 148, legend, plot.others, 12.5, kSoft);
  }
  out += field.axes() + field.marks() + field.names() + field.without_place();
  return out + "</svg>\n";
}

}  // namespace mamba_edge::tools
